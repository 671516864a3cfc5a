"""From settings and weights of others, both in Hugging Face's names, to a net of ours."""

import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from senone import config as configs
from senone import hub
from senone.errors import SenoneError
from senone.interop import InteropError
from senone.models.ctc import Config, Recogniser, encoder_config
from senone.nn.encoder import SpeechEncoder

Net = TypeVar("Net", bound=nn.Module)

# The encoders that were released: (width, layers) -> heads. A checkpoint's weights do not tell.
RELEASED = {(768, 12): 12, (1024, 24): 16, (1280, 48): 16, (1920, 48): 16}
OLD, NEW = ("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")
PRETRAINING = ("quantizer.", "project_hid.", "project_q.", "final_proj.", "label_embs_concat")
POSITION, CONV = "encoder.pos_conv_embed.conv.", "feature_extractor.conv_layers."


def switches(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What an encoder's keys tell and no name of a size does: feat_norm and conv_bias."""
    layer = f"{CONV}1.layer_norm.weight" in weights
    return {"feat_norm": "layer" if layer else "group", "conv_bias": f"{CONV}0.conv.bias" in weights}


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight norm as torch named it before 2.1, and the mask vector as the first files did."""
    names = dict(zip((POSITION + name for name in NEW), (POSITION + name for name in OLD), strict=True))
    names["mask_time_emb_vector"] = "masked_spec_embed"
    return {names.get(name, name): value for name, value in weights.items()}


def letters(weights: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Take the letters' weights out of a recogniser's, and those of pre-training, if they were kept."""
    head = {name: weights.pop(name) for name in ("lm_head.weight", "lm_head.bias") if name in weights}
    if head and not (len(head) == 2 and head["lm_head.weight"].shape[:1] == head["lm_head.bias"].shape):
        raise InteropError(f"{source} lacks a weight of the letters, or lm_head.weight and lm_head.bias do not match")
    if head:
        for name in [name for name in weights if name.startswith(PRETRAINING)]:
            del weights[name]
    return head


def recogniser(
    encoder: SpeechEncoder, head: dict[str, Tensor], vocabulary: list[str], blank: int, source: str | Path
) -> Recogniser:
    """An encoder with its letters. Ours have the blank first, and call it "<pad>".

    Raises InteropError or HubError where there is not one letter for each row of the head, or a weight is missing.
    """
    rows = len(head.get("lm_head.weight", ()))
    if len(vocabulary) != rows or blank not in range(rows) or len(set(vocabulary)) != rows:
        raise InteropError(f"{source} has {rows} rows of letters, but {len(set(vocabulary))} letters, blank {blank}")
    order = [blank, *(row for row in range(rows) if row != blank)]
    head = {name: value[order].float() for name, value in head.items()}
    own = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    names = tuple("<pad>" if row == blank else vocabulary[row] for row in order)
    with torch.device("meta"):
        model = Recogniser(Config(encoder_config(encoder), names))
    hub.load_weights(model, own | head, source, assign=True)
    return model.eval()


def build(kind: type[Net], settings: dict[str, Any], weights: dict[str, Tensor], source: str | Path) -> Net:
    """A `kind` of these settings with these weights (all of them, in single precision), in evaluation mode.

    A mask vector that the file lacks becomes zeros: only training needs it.
    Raises InteropError or HubError for sizes and head counts that cannot be, and for missing, unknown and misshapen
    weights, naming `source` and the key.
    """
    _heads(source, settings["heads"], settings["width"], settings["layers"])
    try:
        config = configs.from_dict(kind.Config, settings)  # type: ignore[attr-defined]
    except configs.ConfigError as error:
        raise InteropError(f"{source}: {error}") from None
    for key in ("channels", "kernels", "strides"):
        if len(getattr(config, key, ())) != len(getattr(config, "channels", ())) or getattr(config, key, 1) == ():
            raise InteropError(f"{source}: {key} and channels of the convolutions differ in number")
    for key, value in configs.to_dict(config).items():
        for size in value if isinstance(value, list) else [value]:
            if type(size) is int and not (0 if key in ("entries", "classes", "layers") else 1) <= size < 2**24:
                raise InteropError(f"{source}: {key} of {size} cannot be")
    if config.layers > len(weights):
        raise InteropError(f"{source} holds {len(weights)} weights, too few for {config.layers} layers")
    weights = {"masked_spec_embed": torch.zeros(config.width), **weights}
    weights = {name: value.float() for name, value in weights.items()}
    try:
        # without memory or a throw of dice, since every weight comes from the file
        with torch.device("meta"):
            model = kind(config)  # type: ignore[call-arg]
    except (SenoneError, RuntimeError) as error:  # RuntimeError: of torch, for numbers beyond 64 bits
        raise InteropError(f"{source}: {error}") from None
    hub.load_weights(model, weights, source, assign=True)
    return model.eval()


def _heads(source: str | Path, heads: Any, width: Any, layers: Any) -> None:
    if type(heads) is not int or type(width) is not int or heads < 1 or width % heads:
        raise InteropError(f"{source}: {heads} heads cannot be right: they do not divide the width {width}")
    usual = RELEASED.get((width, layers), heads)
    if heads != usual:
        sentence = f"{source} says {heads} heads; every released encoder of {layers} blocks, {width} wide, has {usual}"
        warnings.warn(sentence, stacklevel=5)
