"""X-codec2's checkpoints: the training code's (.ckpt of Lightning), the package's, and transformers' Xcodec2Model.

All three are read, the last one is written too. The first two do not state their sizes: the weights tell them, but for
those that never changed: heads of 64, FSQ of 4 steps, and w2v-BERT 2.0 heard at its block 16.
"""

import re
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from senone import config as configs
from senone import hub
from senone.errors import SenoneError
from senone.interop import InteropError, pickles
from senone.interop.huggingface import CONFORMER, FIXED_CONFORMER, _ours, _theirs, _write, read_weights
from senone.models.w2vbert import W2vBert
from senone.models.xcodec2 import Config, XCodec2

# Our names -> theirs, in this order.
TRANSFORMERS = (
    (r"^semantic\.", "semantic_encoder."),
    (r"^semantic_encoder\.first\.", "semantic_adapter.conv1."),
    (r"^semantic_encoder\.conv2\.", "semantic_adapter.conv3."),
    (r"^semantic_encoder\.conv1\.", "semantic_adapter.conv2."),
    (r"^semantic_encoder\.last\.", "semantic_adapter.conv4."),
    (r"^acoustic_encoder\.first\.", "acoustic_encoder.conv1."),
    (r"^acoustic_encoder\.last\.", "acoustic_encoder.conv2."),
    (r"^acoustic_encoder\.act\.", "acoustic_encoder.snake1.act."),
    (r"^(acoustic_encoder\.)blocks(\.\d+\.)act\.", r"\1block\2snake1.act."),
    (r"^(acoustic_encoder\.)blocks(\.\d+\.)down\.", r"\1block\2conv1."),
    (r"^(acoustic_encoder\.)blocks(\.\d+\.)units\.0\.", r"\1block\2res_unit1."),
    (r"^(acoustic_encoder\.)blocks(\.\d+\.)units\.1\.", r"\1block\2res_unit2."),
    (r"^(acoustic_encoder\.)blocks(\.\d+\.)units\.2\.", r"\1block\2res_unit3."),
    (r"(res_unit\d\.)act(\d)\.", r"\1snake\2.act."),
    (r"^enter\.", "fc_encoder."),
    (r"^leave\.", "acoustic_decoder.fc."),
    (r"^quantizer\.(enter|leave)\.", r"quantizer.project_\1."),
    (r"project_enter", "project_in"),
    (r"project_leave", "project_out"),
    (r"^decoder\.", "acoustic_decoder."),
    (r"(acoustic_decoder\.)before\.", r"\1prior_net."),
    (r"(acoustic_decoder\.)after\.", r"\1post_net."),
    (r"(acoustic_decoder\.)blocks\.", r"\1layers."),
    (r"(layers\.\d+\.)norm1\.", r"\1input_layernorm."),
    (r"(layers\.\d+\.)norm2\.", r"\1post_attention_layernorm."),
    (r"(layers\.\d+\.)out\.", r"\1self_attn.o_proj."),
    (r"(layers\.\d+\.)wide\.", r"\1mlp.fc1."),
    (r"(layers\.\d+\.)narrow\.", r"\1mlp.fc2."),
    (r"(acoustic_decoder\.head\.)", r"\1linear."),
)
ORIGINAL = (
    (r"^semantic\.", "semantic_model."),
    (r"^semantic_encoder\.", "SemanticEncoder_module."),
    (r"^semantic_decoder\.", "SemanticDecoder_module."),
    (r"(_module\.)first\.", r"\1initial_conv."),
    (r"(_module\.)conv1\.", r"\1residual_blocks.1."),
    (r"(_module\.)conv2\.", r"\1residual_blocks.3."),
    (r"(_module\.)last\.", r"\1final_conv."),
    (r"^acoustic_encoder\.first\.", "CodecEnc.conv_blocks.0."),
    (r"^acoustic_encoder\.act\.", "CodecEnc.conv_final_block.0.act."),
    (r"^acoustic_encoder\.last\.", "CodecEnc.conv_final_block.1."),
    (r"^acoustic_encoder\.blocks\.(\d+)\.", lambda match: f"CodecEnc.conv_blocks.{int(match[1]) + 1}.block."),
    (r"(block\.)units\.(\d)\.act1\.", r"\1\2.block.0.act."),
    (r"(block\.)units\.(\d)\.conv1\.", r"\1\2.block.1."),
    (r"(block\.)units\.(\d)\.act2\.", r"\1\2.block.2.act."),
    (r"(block\.)units\.(\d)\.conv2\.", r"\1\2.block.3."),
    (r"(conv_blocks\.\d+\.block\.)act\.", r"\g<1>3.act."),
    (r"(conv_blocks\.\d+\.block\.)down\.", r"\g<1>4."),
    (r"^enter\.", "fc_prior."),
    (r"^leave\.", "fc_post_a."),
    (r"^leave_semantic\.", "fc_post_s."),
    (r"^quantizer\.enter\.", "generator.quantizer.project_in."),
    (r"^quantizer\.leave\.", "generator.quantizer.project_out."),
    (r"^decoder\.(embed|before|blocks|after|norm)\.", r"generator.backbone.\1."),
    (r"^decoder\.head\.", "generator.head.out."),
    (r"(backbone\.)before\.", r"\1prior_net."),
    (r"(backbone\.)after\.", r"\1post_net."),
    (r"(backbone\.)norm\.", r"\1final_layer_norm."),
    (r"(backbone\.)blocks\.(\d+)\.norm1\.", r"\1transformers.\2.att_norm."),
    (r"(backbone\.)blocks\.(\d+)\.norm2\.", r"\1transformers.\2.ffn_norm."),
    (r"(backbone\.)blocks\.(\d+)\.qkv\.", r"\1transformers.\2.att.c_attn."),
    (r"(backbone\.)blocks\.(\d+)\.out\.", r"\1transformers.\2.att.c_proj."),
    (r"(backbone\.)blocks\.(\d+)\.wide\.", r"\1transformers.\2.mlp.fc1."),
    (r"(backbone\.)blocks\.(\d+)\.narrow\.", r"\1transformers.\2.mlp.fc2."),
)
SETTINGS = (
    ("hidden_size", "width", 1024),
    ("intermediate_size", "hidden", 4096),
    ("num_hidden_layers", "layers", 12),
    ("num_attention_heads", "heads", 16),
    ("encoder_hidden_size", "channels", 48),
    ("downsampling_ratios", "strides", (2, 2, 4, 4, 5)),
    ("sampling_rate", "sample_rate", 16000),
    ("activation_dropout", "dropout", 0.1),
    ("quantization_levels", "steps", (4,) * 8),
)
# Settings that our net has in one way only.
FIXED = {"hidden_act": "silu", "attention_bias": False, "rms_norm_eps": 1e-6}
# What a file holds besides the codec; of the filters it holds copies, which never changed.
BESIDES = ("discriminator.", "spec_discriminator.", "criteria.", "model_spk.", "perceptual_model.")
COPIES = (".upsample.filter", ".downsample.lowpass.filter", ".downsample.filter", ".istft.window", ".rotary_embed")
HEARD = 16  # the block of w2v-BERT that the released codec hears
QKV = "qkv.weight"


def read(folder: str | Path) -> XCodec2:
    """The codec in a directory of the package (HKUSTAudio/xcodec2) or of transformers, in evaluation mode.

    Raises InteropError or HubError naming the file, and a missing, unknown or misshapen weight.
    """
    folder = Path(folder)
    settings, weights = hub.read_config(folder), read_weights(folder)
    if any(name.startswith("CodecEnc.") for name in weights):
        return _original(weights, folder)
    return _build(_config(settings, folder), weights, TRANSFORMERS, folder)


def read_lightning(path: str | Path) -> XCodec2:
    """The codec in a checkpoint of the training code, without its discriminators, in evaluation mode.

    The pickle is read as plain data. Raises what `read` does.
    """
    tree = pickles.read(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("state_dict"), dict):
        raise InteropError(f"{path} holds no state dict")
    return _original(pickles.tensors(tree["state_dict"], path), path)


def save(model: XCodec2, folder: str | Path) -> Path:
    """Write config.json, model.safetensors and preprocessor_config.json for transformers' Xcodec2Model.

    It has no place for the semantic decoder, which is left out. Raises InteropError for a codec that it cannot be:
    with another speech encoder than w2v-BERT, without anti-aliasing, with one bound, another window or another silence.
    """
    config, semantic = model.config, model.semantic
    wanted = {"anti_alias": True, "bounds": 2, "n_fft": 4 * model.hop, "pad": 160}
    if not isinstance(semantic, W2vBert):
        raise InteropError(f"transformers' X-codec2 has a w2v-BERT inside, this one a {type(semantic).__name__}")
    if config.layer not in (None, semantic.config.layers):
        raise InteropError(f"layer: the codec hears {config.layer} of {semantic.config.layers}, transformers the last")
    for key, value in wanted.items():
        if getattr(config, key) != value:
            raise InteropError(f"{key} is {getattr(config, key)}, but transformers' X-codec2 has {value} only")
    inner = FIXED_CONFORMER | _theirs(semantic.config, CONFORMER) | {"model_type": "wav2vec2-bert"}
    inner["feature_projection_input_dim"] = 2 * semantic.config.mels
    settings = FIXED | _theirs(config, SETTINGS) | {"model_type": "xcodec2", "architectures": ["Xcodec2Model"]}
    settings |= {"num_key_value_heads": config.heads, "head_dim": config.width // config.heads}
    settings |= {"quantization_dim": config.width + semantic.config.width, "semantic_model_config": inner}
    front = {"feature_extractor_type": "Xcodec2FeatureExtractor", "feature_size": semantic.config.mels}
    front |= {"sampling_rate": config.sample_rate, "hop_length": model.hop, "padding_value": 1.0}
    weights = {}
    for name, value in model.untaught().state_dict().items():
        value = value.detach().cpu().contiguous()
        if name.endswith(QKV):
            stem = _rename(name.removesuffix(QKV), TRANSFORMERS)
            rows = zip("qkv", value.chunk(3), strict=True)
            weights |= {f"{stem}self_attn.{part}_proj.weight": piece.clone() for part, piece in rows}
        else:
            weights[_rename(name, TRANSFORMERS)] = value
    _write(Path(folder), weights, {"preprocessor_config.json": front, "config.json": settings})
    return Path(folder)


def _original(weights: dict[str, Tensor], source: str | Path) -> XCodec2:
    above = re.compile(r"semantic_model\.encoder\.layers\.(\d+)\.")
    blocks = [int(match[1]) for match in map(above.match, weights) if match]
    if len(set(blocks)) < HEARD:
        raise InteropError(f"{source} holds {len(set(blocks))} blocks of w2v-BERT; X-codec2 hears block {HEARD}")
    kept = {}
    for name, value in weights.items():
        match = above.match(name)
        if name.startswith(BESIDES) or any(copy in name for copy in COPIES) or (match and int(match[1]) >= HEARD):
            continue
        kept[re.sub(r"\.act\.bias$", ".act.beta", name)] = value
    try:
        kept = _folded(kept, source)
        sizes = _sizes(kept, source)
    except (IndexError, RuntimeError):
        raise InteropError(f"{source} holds weights of shapes that no X-codec2 has") from None
    return _build(sizes, kept, ORIGINAL, source)


def _folded(weights: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """With weight norm, by its old name or its new one, multiplied out: g v / |v| over all but the first axis."""
    pairs = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
    for length, direction in pairs:
        for name in [name for name in weights if name.endswith(f".{length}")]:
            stem = name.removesuffix(length)
            if stem + direction not in weights:
                raise InteropError(f"{source} lacks '{stem}{direction}'")
            g, v = weights.pop(name).float(), weights.pop(stem + direction).float()
            weights[f"{stem}weight"] = v * (g / v.flatten(1).norm(dim=1).view_as(g))
    return weights


def _sizes(weights: dict[str, Tensor], source: str | Path) -> dict[str, Any]:
    """The config that weights of the package tell."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise InteropError(f"{source} lacks '{name}'")
        return tuple(weights[name].shape)

    def count(pattern: str) -> int:
        return len({match[1] for match in map(re.compile(pattern).match, weights) if match})

    encoder, backbone = "semantic_model.encoder.layers.0.", "generator.backbone."
    width = shape(f"{backbone}embed.weight")[0]
    downs = count(r"CodecEnc\.conv_blocks\.(\d+)\.block\.")
    other = shape("semantic_model.feature_projection.projection.weight")
    distances = shape(f"{encoder}self_attn.distance_embedding.weight")[0]
    semantic = {
        "model_type": W2vBert.model_type,
        "width": other[0],
        "layers": HEARD,
        "heads": max(1, other[0] // 64),
        "hidden": shape(f"{encoder}ffn1.intermediate_dense.weight")[0],
        "kernel": shape(f"{encoder}conv_module.depthwise_conv.weight")[2],
        "left": distances - 9,
        "right": 8,
        "mels": other[1] // 2,
    }
    return {
        "channels": shape("CodecEnc.conv_blocks.0.weight")[0],
        "strides": [shape(f"CodecEnc.conv_blocks.{i}.block.4.weight")[2] // 2 for i in range(1, downs + 1)],
        "width": width,
        "layers": count(r"generator\.backbone\.transformers\.(\d+)\."),
        "heads": max(1, width // 64),
        "hidden": shape(f"{backbone}transformers.0.mlp.fc1.weight")[0],
        "n_fft": shape("generator.head.out.weight")[0] - 2,
        "steps": [4] * shape("generator.quantizer.project_in.weight")[0],
        "semantic": semantic,
        "teach": any(name.startswith("SemanticDecoder_module.") for name in weights),
    }


def _config(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config that transformers' config.json tells."""
    source = folder / "config.json"
    ours = _ours(settings, SETTINGS)
    inner = settings.get("semantic_model_config") or {}
    if not isinstance(inner, dict) or inner.get("model_type", "wav2vec2-bert") != "wav2vec2-bert":
        raise InteropError(f"{source}: semantic_model_config must be one of a wav2vec2-bert")
    semantic = _ours({"num_hidden_layers": HEARD, **inner}, CONFORMER)
    inputs = inner.get("feature_projection_input_dim", 160)
    for name, values, fixed in (("", settings, FIXED), ("semantic_model_config.", inner, FIXED_CONFORMER)):
        for key, value in fixed.items():
            if values.get(key, value) != value:
                raise InteropError(f"{source}: {name}{key} is {values[key]!r}, but senone's net has {value!r} only")
    strides = ours["strides"] if isinstance(ours["strides"], list | tuple) else (0,)
    numbers = (inputs, *(table[key] for table in (ours, semantic) for key in ("width", "heads")), *strides)
    if not all(type(number) is int and number > 0 for number in numbers) or inputs % 2:
        raise InteropError(f"{source} holds a size that cannot be")
    derived = {"head_dim": ours["width"] // ours["heads"], "num_key_value_heads": ours["heads"]}
    derived["quantization_dim"] = ours["width"] + semantic["width"]
    for key, value in derived.items():
        if settings.get(key, value) not in (value, None):
            raise InteropError(f"{source}: {key} is {settings[key]!r}, but the other sizes make it {value}")
    semantic |= {"model_type": W2vBert.model_type, "mels": inputs // 2}
    return ours | {"n_fft": 4 * prod(strides), "teach": False, "semantic": semantic}


def _build(settings: dict[str, Any], weights: dict[str, Tensor], names: Any, source: str | Path) -> XCodec2:
    for table in (settings, settings["semantic"]):
        if type(table["layers"]) is int and table["layers"] > len(weights):
            raise InteropError(f"{source} holds {len(weights)} weights, too few for {table['layers']} layers")
    try:
        # without memory or a throw of dice, since every weight comes from the file
        with torch.device("meta"):
            model = XCodec2(configs.from_dict(Config, settings))
    except (SenoneError, RuntimeError, ValueError) as error:  # the last two: of torch, for sizes that cannot be
        raise InteropError(f"{source}: {error}") from None
    weights, own = dict(weights), model.state_dict()
    if names is TRANSFORMERS:
        for name in [name for name in own if name.endswith(QKV)]:
            stem = _rename(name.removesuffix(QKV), names)
            parts = [f"{stem}self_attn.{part}_proj.weight" for part in "qkv"]
            for part in parts:
                if part not in weights:
                    raise InteropError(f"{source} lacks '{part}'")
                have, want = tuple(weights[part].shape), (model.config.width,) * 2
                if have != want:
                    raise InteropError(f"{source}: '{part}' is {have}, the config says {want}")
            weights[_rename(name, names)] = torch.cat([weights.pop(part) for part in parts])
    theirs = {_rename(name, names): name for name in own}
    mask = "semantic.masked_spec_embed"  # needed in training only, which this encoder never is
    weights.setdefault(_rename(mask, names), torch.zeros(len(own[mask])))
    hub.check_names(weights.keys(), theirs.keys(), source)
    mapped = {theirs[name]: value.float() for name, value in weights.items()}
    hub.load_weights(model, mapped, source, assign=True)
    model.semantic.requires_grad_(False)
    return model.eval()


def _rename(name: str, table: Any) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name
