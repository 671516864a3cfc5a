"""Directories of Hugging Face's transformers: wav2vec2, hubert and wav2vec2-bert, read and written.

`senone.load(DIR)` reads them; `save(model, DIR)` writes what `AutoModel.from_pretrained(DIR)` opens.
"""

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from senone import hub
from senone.interop import InteropError, pickles
from senone.interop.nets import NEW, OLD, POSITION, build, old_names, switches, without_letters
from senone.models.hubert import Hubert
from senone.models.w2vbert import W2vBert
from senone.models.wav2vec2 import Wav2Vec2

# Their name, ours, and their default, since a config.json may leave it out.
SIZES = (
    ("hidden_size", "width", 768),
    ("num_hidden_layers", "layers", 12),
    ("num_attention_heads", "heads", 12),
    ("intermediate_size", "hidden", 3072),
)
ENCODER = (
    *SIZES,
    ("conv_dim", "channels", (512,) * 7),
    ("conv_kernel", "kernels", (10, 3, 3, 3, 3, 2, 2)),
    ("conv_stride", "strides", (5, 2, 2, 2, 2, 2, 2)),
    ("feat_extract_norm", "feat_norm", "group"),
    ("conv_bias", "conv_bias", False),
    ("num_conv_pos_embeddings", "pos_kernel", 128),
    ("num_conv_pos_embedding_groups", "pos_groups", 16),
    ("hidden_dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("activation_dropout", "activation_dropout", 0.1),
    ("feat_proj_dropout", "input_dropout", 0.0),
    ("layerdrop", "layer_drop", 0.1),
)
QUANTIZER = (
    ("num_codevector_groups", "groups", 2),
    ("num_codevectors_per_group", "entries", 320),
    ("codevector_dim", "code_dim", 256),
    ("proj_codevector_dim", "dim", 256),
    ("feat_quantizer_dropout", "feature_dropout", 0.0),
)
CONFORMER = (
    *((theirs, ours, {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096}[ours]) for theirs, ours, _ in SIZES),
    ("conv_depthwise_kernel_size", "kernel", 31),
    ("left_max_position_embeddings", "left", 64),
    ("right_max_position_embeddings", "right", 8),
)
# Settings that our nets have in one way only.
FIXED = {
    "hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5, "add_adapter": False,
    "adapter_attn_dim": None, "feat_proj_layer_norm": True, "conv_pos_batch_norm": False,
}  # fmt: skip
FIXED_CONFORMER = {
    "hidden_act": "swish", "layer_norm_eps": 1e-5, "add_adapter": False, "position_embeddings_type": "relative_key",
}  # fmt: skip
HEADS = ("quantizer.", "project_hid.", "project_q.")  # of pre-training; these names have no prefix
PREFIXES = ("hubert.", "wav2vec2.", "wav2vec2_bert.")


def read(folder: str | Path) -> Hubert | Wav2Vec2 | W2vBert:
    """The model in a directory of transformers, in evaluation mode.

    Sizes are those of config.json, and every weight has to have them. Where config.json and the weights differ on
    feat_extract_norm or conv_bias, the weights are right, and a warning says so. The wave is normalised if
    preprocessor_config.json says so; without that file, if the convolutions have LayerNorms, as those were trained.
    Raises HubError or InteropError naming the file and the key, also for a head count that cannot be right.
    """
    folder = Path(folder)
    settings, source = hub.read_config(folder), folder / "config.json"
    weights = read_weights(folder)
    weights = without_letters(old_names({_bare(name): value for name, value in weights.items()}), folder)
    conformer = settings.get("model_type") == "wav2vec2-bert"
    for key, value in (FIXED_CONFORMER if conformer else FIXED).items():
        if settings.get(key, value) != value:
            raise InteropError(f"{source}: {key} is {settings[key]!r}, but senone's encoder has {value!r} only")
    if conformer:
        mels = settings.get("feature_projection_input_dim", 160)
        if type(mels) is not int or mels % 2:
            raise InteropError(f"{source}: feature_projection_input_dim {mels!r} is not twice a number of mels")
        return build(W2vBert, {**_ours(settings, CONFORMER), "mels": mels // 2}, weights, folder)
    facts = _ours(settings, ENCODER)
    for key, value in switches(weights).items():
        if facts[key] != value:
            warnings.warn(f"{source} says {key} is {facts[key]}, the weights say {value}: they are right", stacklevel=2)
            facts[key] = value
    layered = facts["feat_norm"] == "layer"
    facts["ln_position"] = "pre" if settings.get("do_stable_layer_norm", False) else "post"
    facts["wav_norm"] = "hf" if _normalised(folder, layered) else "none"
    facts["feature_grad"] = 1.0 if layered else 0.1
    if settings["model_type"] == "hubert":
        return build(Hubert, facts, weights, folder)
    heads = _ours(settings, QUANTIZER) if "quantizer.codevectors" in weights else {"entries": 0}
    return build(Wav2Vec2, facts | heads, weights, folder)


def save(model: Hubert | Wav2Vec2 | W2vBert, folder: str | Path, *, new_names: bool = False) -> Path:
    """Write config.json, model.safetensors and preprocessor_config.json, each under a temporary name first.

    Transformers opens it as HubertModel, Wav2Vec2Model, Wav2Vec2ForPreTraining (a model with its quantizer) or
    Wav2Vec2BertModel, and computes the same. It has no place for HuBERT's pre-training head, which is left out, and
    its one way to normalise the wave ("hf") stands for fairseq's too. new_names: weight norm as torch names it since
    2.1; the older names, the default, are read by every version. Raises InteropError naming what cannot be written.
    """
    folder, config = Path(folder), model.config
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if isinstance(model, W2vBert):
        settings = {"model_type": "wav2vec2-bert", **FIXED_CONFORMER, **_theirs(config, CONFORMER)}
        settings |= {"architectures": ["Wav2Vec2BertModel"], "feature_projection_input_dim": 2 * config.mels}
        front = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": config.mels}
        front |= {"num_mel_bins": config.mels, "stride": 2}
    elif isinstance(model, Hubert | Wav2Vec2):
        settings = FIXED | _theirs(config, ENCODER) | {"do_stable_layer_norm": config.ln_position == "pre"}
        if isinstance(model, Hubert):
            weights = {k: v for k, v in weights.items() if not k.startswith(("final_proj.", "label_embs_concat"))}
            settings |= {"model_type": "hubert", "architectures": ["HubertModel"]}
        else:
            full = config.entries > 0
            settings |= {"model_type": "wav2vec2", **(_theirs(config, QUANTIZER) if full else {})}
            settings["architectures"] = ["Wav2Vec2ForPreTraining" if full else "Wav2Vec2Model"]
            if full:
                weights = {k if k.startswith(HEADS) else f"wav2vec2.{k}": v for k, v in weights.items()}
        front = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}
        front |= {"do_normalize": config.wav_norm != "none", "return_attention_mask": config.feat_norm == "layer"}
    else:
        raise InteropError(f"transformers has no place for a {type(model).__name__}")
    if new_names:
        for old, new in zip(OLD, NEW, strict=True):
            weights = {k.replace(POSITION + old, POSITION + new): v for k, v in weights.items()}
    front |= {"sampling_rate": 16000, "padding_value": 0.0, "padding_side": "right"}
    _write(folder, settings, front, weights)
    return folder


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a directory: safetensors, or a pickle through the restricted reader; in one file or several."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).exists():
            return _file(folder / stem)
        index = folder / f"{stem}.index.json"
        if index.exists():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                files = [folder / Path(name).name for name in names]  # nothing outside the directory
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InteropError(f"{index} cannot be read: {error}") from None
            return {key: value for file in files for key, value in _file(file).items()}
    raise InteropError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def _file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        return pickles.tensors(pickles.read(path), path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InteropError(f"{path} cannot be read: {error}") from None


def _bare(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _ours(settings: dict[str, Any], table: Any) -> dict[str, Any]:
    return {ours: settings.get(theirs, default) for theirs, ours, default in table}


def _theirs(config: Any, table: Any) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for theirs, ours, _ in table}


def _normalised(folder: Path, layered: bool) -> bool:
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return layered
    try:
        return bool(json.loads(path.read_text()).get("do_normalize", True))
    except (OSError, ValueError, AttributeError) as error:
        raise InteropError(f"{path} cannot be read: {error}") from None


def _write(folder: Path, settings: dict[str, Any], front: dict[str, Any], weights: dict[str, Tensor]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            save_file(weights, f"{scratch}/model.safetensors", {"format": "pt"})
            for name, values in (("preprocessor_config.json", front), ("config.json", settings)):
                Path(scratch, name).write_text(json.dumps(values, indent=2) + "\n")
            for name in ("model.safetensors", "preprocessor_config.json", "config.json"):
                os.replace(f"{scratch}/{name}", folder / name)
    except (OSError, SafetensorError) as error:
        raise InteropError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
