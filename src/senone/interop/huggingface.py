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
from senone.interop.nets import NEW, OLD, POSITION, PRETRAINING, build, letters, old_names, recogniser, switches
from senone.models.ctc import Recogniser
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
PREFIXES = ("hubert.", "wav2vec2.", "wav2vec2_bert.")


def read(folder: str | Path) -> Hubert | Wav2Vec2 | W2vBert | Recogniser:
    """The model in a directory of transformers, in evaluation mode: an encoder, or with letters (ForCTC) a recogniser.

    Sizes are those of config.json, and every weight has to have them. Where config.json and the weights differ on
    feat_extract_norm or conv_bias, the weights are right, and a warning says so. The wave is normalised if
    preprocessor_config.json says so; without that file, if the convolutions have LayerNorms, as those were trained.
    Raises HubError or InteropError naming the file and the key, also for a head count that cannot be right.
    """
    folder = Path(folder)
    settings, source = hub.read_config(folder), folder / "config.json"
    weights = read_weights(folder)
    weights = old_names({_bare(name): value for name, value in weights.items()})
    head = letters(weights, folder)
    conformer = settings.get("model_type") == "wav2vec2-bert"
    for key, value in (FIXED_CONFORMER if conformer else FIXED).items():
        if settings.get(key, value) != value:
            raise InteropError(f"{source}: {key} is {settings[key]!r}, but senone's encoder has {value!r} only")
    if conformer:
        mels = settings.get("feature_projection_input_dim", 160)
        if type(mels) is not int or mels % 2:
            raise InteropError(f"{source}: feature_projection_input_dim {mels!r} is not twice a number of mels")
        if head:
            warnings.warn(f"{folder} is a recogniser: its encoder is read, its letters are not", stacklevel=2)
        return build(W2vBert, {**_ours(settings, CONFORMER), "mels": mels // 2}, weights, folder)
    facts = _ours(settings, ENCODER)
    for key, value in switches(weights).items():
        if facts[key] != value:
            warnings.warn(f"{source} says {key} is {facts[key]}, the weights say {value}: they are right", stacklevel=2)
            facts[key] = value
    layered = facts["feat_norm"] == "layer"
    facts["ln_position"] = "pre" if settings.get("do_stable_layer_norm", False) else "post"
    front = _json(folder / "preprocessor_config.json")
    facts["wav_norm"] = "hf" if front.get("do_normalize", bool(front) or layered) else "none"
    facts["feature_grad"] = 1.0 if layered else 0.1
    if settings["model_type"] == "hubert":
        model = build(Hubert, facts, weights, folder)
    else:
        heads = _ours(settings, QUANTIZER) if "quantizer.codevectors" in weights else {"entries": 0}
        model = build(Wav2Vec2, facts | heads, weights, folder)
    if not head:
        return model
    return recogniser(
        model, head, _vocabulary(folder, len(head["lm_head.bias"])), settings.get("pad_token_id", 0), folder
    )


def save(model: Hubert | Wav2Vec2 | W2vBert | Recogniser, folder: str | Path, *, new_names: bool = False) -> Path:
    """Write config.json, model.safetensors and preprocessor_config.json, each under a temporary name first; of a
    recogniser vocab.json and tokenizer_config.json too.

    Transformers opens it as HubertModel, Wav2Vec2Model, Wav2Vec2ForPreTraining (a model with its quantizer),
    Wav2Vec2BertModel, HubertForCTC or Wav2Vec2ForCTC, and computes the same. It has no place for HuBERT's
    pre-training head, which is left out, and its one way to normalise the wave ("hf") stands for fairseq's too.
    new_names: weight norm as torch names it since 2.1; the older names, the default, are read by every version.
    Raises InteropError naming what cannot be written.
    """
    encoder: Any = model.encoder if isinstance(model, Recogniser) else model
    config, weights = encoder.config, dict(encoder.state_dict())
    files: dict[str, Any] = {}
    if isinstance(encoder, W2vBert):
        settings = {"model_type": "wav2vec2-bert", **FIXED_CONFORMER, **_theirs(config, CONFORMER)}
        settings |= {"architectures": ["Wav2Vec2BertModel"], "feature_projection_input_dim": 2 * config.mels}
        front = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": config.mels}
        front |= {"num_mel_bins": config.mels, "stride": 2}
    elif isinstance(encoder, Hubert | Wav2Vec2):
        family, kind = ("hubert", "Hubert") if isinstance(encoder, Hubert) else ("wav2vec2", "Wav2Vec2")
        settings = FIXED | _theirs(config, ENCODER)
        settings |= {"model_type": family, "do_stable_layer_norm": config.ln_position == "pre"}
        front = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}
        front |= {"do_normalize": config.wav_norm != "none", "return_attention_mask": config.feat_norm == "layer"}
        heads = {name: weights.pop(name) for name in list(weights) if name.startswith(PRETRAINING)}
        task = "Model"
        if isinstance(model, Recogniser):
            heads, task = {f"lm_head.{name}": value for name, value in model.lm_head.state_dict().items()}, "ForCTC"
            files = _tokenizer(model.config.vocabulary)
            settings |= {"vocab_size": len(model.config.vocabulary), "pad_token_id": 0}
        elif isinstance(encoder, Wav2Vec2) and heads:
            task = "ForPreTraining"
            settings |= _theirs(config, QUANTIZER)
        settings["architectures"] = [kind + task]
        if task != "Model":
            weights = {f"{family}.{name}": value for name, value in weights.items()} | heads
    else:
        raise InteropError(f"transformers has no place for a {type(encoder).__name__}")
    if new_names:
        for old, new in zip(OLD, NEW, strict=True):
            weights = {k.replace(POSITION + old, POSITION + new): v for k, v in weights.items()}
    front |= {"sampling_rate": 16000, "padding_value": 0.0, "padding_side": "right"}
    files |= {"preprocessor_config.json": front, "config.json": settings}
    _write(Path(folder), {k: v.detach().cpu().contiguous() for k, v in weights.items()}, files)
    return Path(folder)


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


def _json(path: Path) -> dict[str, Any]:
    """A file beside config.json; empty where there is none."""
    try:
        values = json.loads(path.read_text())
        assert isinstance(values, dict)
        return values
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AssertionError) as error:
        raise InteropError(f"{path} cannot be read: {error or 'it must hold one JSON object'}") from None


def _vocabulary(folder: Path, rows: int) -> list[str]:
    """The letters by number: vocab.json, and tokens added to it; the one between words is "|"."""
    ids = _json(folder / "vocab.json") | _json(folder / "added_tokens.json")
    named = {number: token for token, number in ids.items() if type(number) is int}
    if not set(range(rows)) <= named.keys():
        raise InteropError(f"{folder} has {rows} rows of letters, but vocab.json does not name all of them")
    usual = {
        "[PAD]": "<pad>",
        "[UNK]": "<unk>",
        _json(folder / "tokenizer_config.json").get("word_delimiter_token"): "|",
    }
    return [usual.get(named[row], named[row]) for row in range(rows)]


def _tokenizer(vocabulary: tuple[str, ...]) -> dict[str, Any]:
    """The files of a Wav2Vec2CTCTokenizer, which adds tokens that it thinks are missing unless told that none is."""
    kinds = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special = {kind: token if token in vocabulary else None for kind, token in kinds.items()}
    tokenizer = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|", **special}
    return {"vocab.json": {token: row for row, token in enumerate(vocabulary)}, "tokenizer_config.json": tokenizer}


def _write(folder: Path, weights: dict[str, Tensor], files: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            save_file(weights, f"{scratch}/model.safetensors", {"format": "pt"})
            for name, values in files.items():
                Path(scratch, name).write_text(json.dumps(values, indent=2) + "\n")
            for name in ("model.safetensors", *files):
                os.replace(f"{scratch}/{name}", folder / name)
    except (OSError, SafetensorError) as error:
        raise InteropError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
