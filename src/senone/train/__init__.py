"""`run`: train a system by a recipe. The parts: a Task (what to learn), Crops (from what), `fit` (how)."""

from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import torch

from senone import config as configs
from senone import hub
from senone.data.loader import Crops, Store
from senone.data.manifest import read
from senone.train import parallel
from senone.train.codec import CodecRecipe, CodecTask
from senone.train.loop import fit
from senone.train.task import Recipe, Task, TrainError

__all__ = ["CodecRecipe", "CodecTask", "Recipe", "Task", "TrainError", "fit", "recipe_for", "run"]

RECIPES = Path(__file__).parent.parent / "recipes"
SYSTEMS = hub.Registry(
    "system", {"soundstream": "senone.models.soundstream:SoundStream", "spectral": "senone.models.spectral:Spectral"}
)


def run(system: str, settings: list[str], out: str | Path) -> Path:
    """Train `system` ("soundstream", "spectral", or a codec of your own, "file.py:Class"); the folder of the model.

    settings: `data=FOLDER_OR_MANIFEST`, `recipe=NAME_OR_FILE.yaml`, and any key of the recipe, such as `model.levels=4`
    or `optim.generator.lr=1e-4`. The same call on the same `out` goes on where it stopped. Raises SenoneError naming
    the key or the file.
    """
    kind = hub.user_class(system) if ".py:" in system else SYSTEMS.get(system)
    recipe = recipe_for(system, kind, settings)
    if not recipe.data:
        raise TrainError("no data: say data=FOLDER or data=MANIFEST")
    parallel.start()
    try:
        torch.manual_seed(recipe.seed)
        model = kind(recipe.model) if hasattr(kind, "Config") else kind()
        task = CodecTask(model, recipe)
        noise = Store(read(recipe.noise), model.sample_rate, recipe.memory * 1e9 / 4) if recipe.noise else None
        data = Crops(
            Store(read(recipe.data), model.sample_rate, recipe.memory * 1e9),
            round(recipe.crop * model.sample_rate),
            max(1, round(recipe.batch / recipe.crop)),
            gain=recipe.gain,
            noise=noise,
            noisy=recipe.noisy,
            seed=recipe.seed,
            rank=parallel.rank(),
            world=parallel.world(),
        )
        return fit(task, data, recipe, out)
    finally:
        parallel.stop()


def recipe_for(system: str, kind: type, settings: list[str]) -> Any:
    """The recipe with the model's own Config as its table `model`: defaults, then the recipe's file, then settings."""
    named = [setting.removeprefix("recipe=") for setting in settings if setting.startswith("recipe=")]
    rest = [setting for setting in settings if not setting.startswith("recipe=")]
    fields: list[Any] = []
    if hasattr(kind, "Config"):
        fields = [("model", kind.Config, field(default_factory=kind.Config))]
    whole = make_dataclass("Recipe", fields, bases=(CodecRecipe,), frozen=True)
    values = configs.to_dict(whole())
    for name in named:
        values = _merge(values, configs.read_yaml(_file(system, name)))
    return configs.override(configs.from_dict(whole, values), rest)


def _file(system: str, name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = {path.stem.removeprefix(f"{system}-"): path for path in sorted(RECIPES.glob(f"{system}-*.yaml"))}
    if name not in known:
        raise TrainError(hub.unknown(f"recipe of {system}", name, list(known)))
    return known[name]


def _merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """`patch` over `base`, table by table."""
    both = {key: _merge(base[key], patch[key]) for key in base.keys() & patch.keys() if _tables(base[key], patch[key])}
    return base | patch | both


def _tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)
