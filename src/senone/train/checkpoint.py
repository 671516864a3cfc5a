"""All that a run needs to go on as if it had never stopped: one file, replaced as a whole."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from senone import hub, tree
from senone.train.optim import Optimiser, average
from senone.train.task import TrainError


class Run:
    """The state of a run: players, their optimisers and number of moves, the averaged model, the steps done.

    There are no random states to keep: every step seeds the generators anew.
    """

    def __init__(self, players: dict[str, nn.Module], optim: dict[str, Optimiser]) -> None:
        self.players, self.model = players, next(iter(players))
        self.optim = {name: optim[name].build(module) for name, module in players.items()}
        self.moves = dict.fromkeys(players, 0)
        self.mean = copy.deepcopy(players[self.model]).eval().requires_grad_(False)
        self.step = 0

    def average(self, decay: float) -> None:
        """One step of the averaged model."""
        average(self.mean, self.players[self.model], self.step, decay)

    def save(self, path: Path, recipe: dict[str, Any]) -> None:
        """Write everything, under a temporary name first. Raises TreeError naming the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "moves": self.moves, "recipe": recipe, "mean": dict(self.mean.state_dict())}
        state["players"] = {name: dict(module.state_dict()) for name, module in self.players.items()}
        state["optim"] = {name: self._moments(name) for name in self.players}
        tree.save(state, path)

    def load(self, path: Path, recipe: dict[str, Any]) -> None:
        """Go on from what `save` wrote. Raises TreeError, or TrainError if `recipe` has another model."""
        state = tree.load(path)
        _check_same_model(path, state["recipe"].get("model", {}), recipe.get("model", {}))
        for name, module in self.players.items():
            hub.load_weights(module, state["players"][name], path)
            own = self.optim[name].state_dict()
            keys = [key for key, _ in module.named_parameters()]
            kept = {i: state["optim"][name][key] for i, key in enumerate(keys) if key in state["optim"][name]}
            self.optim[name].load_state_dict({"state": kept, "param_groups": own["param_groups"]})
        hub.load_weights(self.mean, state["mean"], path)
        self.step, self.moves = state["step"], state["moves"]

    def start_from(self, source: str) -> None:
        """Take the weights of another run (its folder), discriminators and all, or of a model that `load` knows.

        A part of ours that the other has nothing of, such as a denoiser, stays as it is.
        """
        path = Path(source) / "training" / "state.safetensors"
        if path.exists():
            state = tree.load(path)
            found = state["players"] | {self.model: state["mean"]}
        else:
            found = {self.model: hub.load(source).state_dict()}
        for name, module in self.players.items():
            if name in found:
                parts = {key.split(".")[0] for key in found[name]}
                new = {key: own for key, own in module.state_dict().items() if key.split(".")[0] not in parts}
                hub.load_weights(module, found[name] | new, path if path.exists() else source)
        self.mean.load_state_dict(self.players[self.model].state_dict())

    def _moments(self, name: str) -> dict[str, dict[str, torch.Tensor]]:
        state = self.optim[name].state_dict()["state"]
        keys = [key for key, _ in self.players[name].named_parameters()]
        return {keys[index]: dict(moments) for index, moments in state.items()}


def _check_same_model(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise TrainError where a run would go on with another model."""
    for key in before.keys() | now.keys():
        if before.get(key) != now.get(key):
            said = f"model.{key}={before.get(key)}, the recipe says {now.get(key)}"
            raise TrainError(f"{path} has {said}: choose another output folder")
