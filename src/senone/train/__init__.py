"""`run`: train a system by a recipe. The parts: a Task (what to learn), data (from what), `fit` (how).

A system's own file in this room has its Recipe, its Task, and `prepare`, which makes task and data of a recipe.
"""

from dataclasses import field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from senone import config as configs
from senone import hub
from senone.train import codec, ctc, hubert, parallel, wav2vec2
from senone.train.codec import CodecRecipe, CodecTask
from senone.train.loop import fit
from senone.train.task import Recipe, Task, TrainError

__all__ = ["CodecRecipe", "CodecTask", "Recipe", "Task", "TrainError", "fit", "recipe_for", "run"]

RECIPES = Path(__file__).parent.parent / "recipes"
SYSTEMS = hub.Registry(
    "system",
    {
        "ctc": "senone.models.ctc:Recogniser",
        "hubert": "senone.models.hubert:Hubert",
        "soundstream": "senone.models.soundstream:SoundStream",
        "spectral": "senone.models.spectral:Spectral",
        "speechtokenizer": "senone.models.speechtokenizer:SpeechTokenizer",
        "wav2vec2": "senone.models.wav2vec2:Wav2Vec2",
        "xcodec2": "senone.models.xcodec2:XCodec2",
    },
)
# what is not a codec: its recipe, and `prepare`
OTHERS = {
    "ctc": (ctc.CTCRecipe, ctc.prepare),
    "hubert": (hubert.HubertRecipe, hubert.prepare),
    "wav2vec2": (wav2vec2.Wav2Vec2Recipe, wav2vec2.prepare),
}


def run(system: str, settings: list[str], out: str | Path) -> Path:
    """Train `system` (a name in SYSTEMS, or a codec of your own, "file.py:Class"); the folder of the model.

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
        _, prepare = OTHERS.get(system, (None, partial(codec.prepare, kind)))
        task, data = prepare(recipe)
        return fit(task, data, recipe, out)
    finally:
        parallel.stop()


def recipe_for(system: str, kind: type, settings: list[str]) -> Any:
    """The recipe: defaults, then the recipe's file, then settings. Its table `model` is the model's own Config, unless
    the system says what to change of another model."""
    named = [setting.removeprefix("recipe=") for setting in settings if setting.startswith("recipe=")]
    rest = [setting for setting in settings if not setting.startswith("recipe=")]
    whole, _ = OTHERS.get(system, (CodecRecipe, None))
    if hasattr(kind, "Config") and "model" not in [each.name for each in fields(whole)]:
        model: list[Any] = [("model", kind.Config, field(default_factory=kind.Config))]
        whole = make_dataclass("Recipe", model, bases=(whole,), frozen=True)
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
