"""Where models come from: bundled names, directories, hub repositories, a file of one's own."""

import difflib
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Set
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from senone import config as configs
from senone.errors import SenoneError

BUNDLED = Path(__file__).parent / "weights"


class HubError(SenoneError):
    """A name nobody knows, or a checkpoint that does not fit its model."""


class Registry:
    """Names to `module:attribute` strings, imported on use, with did-you-mean errors."""

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind, self.entries = kind, entries

    def __iter__(self):
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def get(self, name: str) -> Any:
        if name not in self.entries:
            raise HubError(unknown(self.kind, name, list(self.entries)))
        module, _, attribute = self.entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


def unknown(kind: str, name: str, names: list[str]) -> str:
    """The sentence for a name that is not there, with the nearest one that is."""
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(names))}"
    return f"unknown {kind} '{name}'; {hint}"


# model_type in config.json -> class. Prefixed, so that it never clashes with transformers' own.
MODELS = Registry(
    "model type",
    {
        "senone_bigram": "senone.models.bigram:Bigram",
        "senone_ctc": "senone.models.ctc:Recogniser",
        "senone_discriminant": "senone.models.units:Discriminant",
        "senone_hubert": "senone.models.hubert:Hubert",
        "senone_mfcc": "senone.models.units:MFCC",
        "senone_soundstream": "senone.models.soundstream:SoundStream",
        "senone_spectral": "senone.models.spectral:Spectral",
        "senone_speechtokenizer": "senone.models.speechtokenizer:SpeechTokenizer",
        "senone_transformers": "senone.interop.transformers:Foreign",
        "senone_units": "senone.models.units:Units",
        "senone_w2vbert": "senone.models.w2vbert:W2vBert",
        "senone_wav2vec2": "senone.models.wav2vec2:Wav2Vec2",
        "senone_xcodec2": "senone.models.xcodec2:XCodec2",
    },
)
# Checkpoints of others: model_type of a Hugging Face directory, suffix of a file, or prefix of a name -> reader.
FOREIGN = Registry(
    "model type",
    {
        "hubert": "senone.interop.huggingface:read",
        "speechtokenizer": "senone.interop.speechtokenizer:read",
        "wav2vec2": "senone.interop.huggingface:read",
        "wav2vec2-bert": "senone.interop.huggingface:read",
        "xcodec2": "senone.interop.xcodec2:read",
        ".ckpt": "senone.interop.xcodec2:read_lightning",
        ".pt": "senone.interop.upstream:read",
        ".pth": "senone.interop.upstream:read",
        "hf:": "senone.interop.transformers:load",
    },
)
# What `save_pretrained(format="transformers")` can write: model type -> writer.
TRANSFORMERS = Registry(
    "model type of transformers",
    {
        "senone_ctc": "senone.interop.huggingface:save",
        "senone_hubert": "senone.interop.huggingface:save",
        "senone_w2vbert": "senone.interop.huggingface:save",
        "senone_wav2vec2": "senone.interop.huggingface:save",
        "senone_xcodec2": "senone.interop.xcodec2:save",
    },
)
# Architectures without weights, for training and for timing: name -> (model type, config constructor).
PRESETS = Registry(
    "model",
    {
        "hubert-base": "senone.models.hubert:base",
        "hubert-large": "senone.models.hubert:large",
        "hubert-xlarge": "senone.models.hubert:xlarge",
        "soundstream-24k": "senone.models.soundstream:paper_24k",
        "soundstream-16k": "senone.models.soundstream:paper_16k",
        "speechtokenizer": "senone.models.speechtokenizer:official",
        "w2v-bert-2": "senone.models.w2vbert:w2vbert_2",
        "wav2vec2-base": "senone.models.wav2vec2:base",
        "wav2vec2-large-ls960": "senone.models.wav2vec2:large_ls960",
        "wav2vec2-large-lv60": "senone.models.wav2vec2:large_lv60",
        "xcodec2": "senone.models.xcodec2:official",
    },
)


class Pretrained:
    """Mix into an `nn.Module` built from one frozen config: save and load as config.json + model.safetensors."""

    Config: ClassVar[type]
    model_type: ClassVar[str]
    config: Any

    def save_pretrained(
        self,
        folder: str | Path,
        metadata: dict[str, str] | None = None,
        *,
        half: bool = False,
        format: str = "senone",
    ) -> Path:
        """Write config.json and model.safetensors (each under a temporary name first), weights in fp32.

        half: parameters in fp16, for a small file; buffers, such as codebooks, stay fp32. It rounds them, so what is
        loaded has another fingerprint than `self`, once: saved again it keeps it.
        format: "transformers" writes what `AutoModel.from_pretrained` opens there, for the model types it knows.
        Raises HubError naming the folder, or the weight that fp16 cannot hold.
        """
        folder = Path(folder)
        assert isinstance(self, nn.Module)
        if format == "transformers":
            return TRANSFORMERS.get(self.model_type)(self, folder)
        if format != "senone":
            raise HubError(unknown("format", format, ["senone", "transformers"]))
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
        if half:
            for name, _ in self.named_parameters():
                weights[name] = weights[name].half()
                if not bool(torch.isfinite(weights[name]).all()):
                    raise HubError(f"weight '{name}' does not fit into half precision")
        settings = {"model_type": self.model_type, **configs.to_dict(self.config)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
                Path(scratch, "model.safetensors").write_bytes(to_bytes(weights, {"format": "pt", **(metadata or {})}))
                Path(scratch, "config.json").write_text(json.dumps(settings, indent=2) + "\n")
                for name in ("model.safetensors", "config.json"):
                    os.replace(f"{scratch}/{name}", folder / name)
        except (OSError, SafetensorError) as error:
            raise HubError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
        return folder

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote, in evaluation mode. Raises HubError naming file and key."""
        folder = Path(folder)
        settings = read_config(folder)
        kind = settings.pop("model_type", None)
        if kind != cls.model_type:
            raise HubError(f"{folder}/config.json holds a '{kind}', not a '{cls.model_type}'")
        try:
            model: Self = _unfilled(cls, configs.from_dict(cls.Config, settings))
        except SenoneError as error:
            raise HubError(f"{folder}/config.json: {error}") from None
        except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:  # of torch, for sizes that cannot be
            raise HubError(f"{folder}/config.json holds a size that cannot be: {error}") from error
        assert isinstance(model, nn.Module)
        try:
            weights = load_file(folder / "model.safetensors")
        except FileNotFoundError:
            raise HubError(f"{folder} has no model.safetensors") from None
        except (SafetensorError, OSError) as error:
            raise HubError(f"{folder}/model.safetensors cannot be read: {error}") from None
        load_weights(model, weights, folder, assign=True)
        return model.eval()

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the saved files to a Hugging Face repository; returns its address."""
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as scratch:
            self.save_pretrained(scratch)
            api = HfApi()
            api.create_repo(repository, exist_ok=True, **options)
            return str(api.upload_folder(repo_id=repository, folder_path=scratch))


def _unfilled(kind: Any, config: Any) -> Any:
    """A model whose weights come from a file next: no memory nor dice for them where `kind` is senone's own and holds
    no other tensors, so that a large model is not there twice."""
    if kind.model_type in MODELS:
        with torch.device("meta"):
            model = kind(config)
        if dict(model.named_buffers()).keys() <= model.state_dict().keys():
            return model
    with torch.random.fork_rng(devices=[]):
        return kind(config)


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str | Path, assign: bool = False) -> None:
    """Copy `weights` into `model`, or with `assign` make them its own; either way they get the types that it has.

    Raises HubError naming `source` and the first key that is missing, unknown or misshapen.
    """
    own = model.state_dict()
    check_names(weights.keys(), own.keys(), source)
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise HubError(f"{source}: '{name}' is {tuple(value.shape)}, the config says {tuple(own[name].shape)}")
    model.load_state_dict({name: value.to(own[name].dtype) for name, value in weights.items()}, assign=assign)


def check_names(have: Set[str], want: Set[str], source: str | Path) -> None:
    """Raise HubError naming `source` and the first missing or unknown key unless both sets are the same."""
    for title, keys in (("lacks", want - have), ("has unknown", have - want)):
        if keys:
            raise HubError(f"{source} {title} {len(keys)} weights, first '{sorted(keys)[0]}'")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises HubError naming the file."""
    try:
        settings = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise HubError(f"{folder} has no config.json") from None
    except (OSError, ValueError) as error:
        raise HubError(f"{folder}/config.json cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise HubError(f"{folder}/config.json must hold one JSON object")
    return settings


def fingerprint(model: nn.Module, *facts: Any) -> str:
    """SHA-256 over the persistent weights (as fp32) and `facts`: 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu()
        digest.update(name.encode())
        digest.update((value.float() if value.is_floating_point() else value).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def part(table: dict[str, Any], key: str) -> Any:
    """A net inside a model, with random weights: its model_type and config are the table `key` of the model's config.

    Raises HubError for a model_type that nobody knows, ConfigError naming the dotted key.
    """
    kind = MODELS.get(str(table.get("model_type")))
    settings = {name: value for name, value in table.items() if name != "model_type"}
    return kind(configs.from_dict(kind.Config, settings, f"{key}."))


def table_of(net: Any, config: Any) -> dict[str, Any]:
    """What `part` makes a net like this one from, of this config."""
    return {"model_type": net.model_type, **configs.to_dict(config)}


def width_of(encoder: Any) -> int:
    """How wide the features of an encoder are: it says so itself, or its config does."""
    return getattr(encoder, "width", None) or encoder.config.width


def names() -> list[str]:
    """Every name that `load` knows without network: bundled models, then presets."""
    bundled = [folder.name for folder in sorted(BUNDLED.glob("*")) if (folder / "config.json").exists()]
    return bundled + list(PRESETS)


@torch.inference_mode(False)  # weights that can be trained, wherever they were asked for
def load(name: str | Path) -> Any:
    """A model in evaluation mode: a bundled NAME, a directory, `org/repo` on the hub, or a class of one's own.

    A directory may also be Hugging Face's of type wav2vec2, hubert or wav2vec2-bert; a .pt file, fairseq's or s3prl's.
    `hf:org/name` and `hf:DIRECTORY` are tokenizers of transformers (EnCodec, DAC, Mimi, X-codec, ...).
    `file.py:Class` has the weights that its constructor gives, `file.py:Class@DIRECTORY` those that
    `save_pretrained` wrote. A preset without weights ("soundstream-24k") comes with seeded random ones and a warning.
    Raises HubError with the nearest known name where there is nothing.
    """
    text = str(name)
    if ".py:" in text:
        source, _, folder = text.partition("@")
        kind = user_class(source)
        for attribute in ("Config", "model_type"):
            if not hasattr(kind, attribute):
                raise HubError(f"{source} needs an attribute {attribute}")
        return kind.from_pretrained(folder) if folder else kind().eval()
    prefix, colon, rest = text.partition(":")
    if colon and prefix + colon in FOREIGN:
        return FOREIGN.get(prefix + colon)(rest)
    if text in names() and text not in PRESETS:
        return _from_folder(BUNDLED / text)
    if text in PRESETS:
        warnings.warn(f"'{text}' has random weights: an untrained architecture", stacklevel=2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return PRESETS.get(text)().eval()
    if Path(text).is_dir():
        return _from_folder(Path(text))
    if Path(text).suffix in FOREIGN and Path(text).is_file():
        return FOREIGN.get(Path(text).suffix)(text)
    if text.count("/") == 1 and not text.startswith((".", "/")) and not Path(text.split("/")[0]).exists():
        return _from_folder(_download(text))
    if Path(text).suffix in FOREIGN:
        raise HubError(f"{text} does not exist")
    if "/" in text or Path(text).exists():
        raise HubError(f"'{text}' is not a model directory")
    raise HubError(unknown("model", text, names()))


def user_class(text: str) -> Any:
    """The class that `path/to/file.py:Class` names. It runs that file: the user's own code."""
    path, _, attribute = text.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise HubError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(f"senone_user_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their classes up there
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise HubError(unknown(f"class in {path}", attribute, classes))
    return getattr(module, attribute)


def _from_folder(folder: Path) -> Any:
    inner = [file.parent for file in folder.glob("*/config.json")]
    if len(inner) == 1 and not (folder / "config.json").exists():
        folder = inner[0]  # of the hub's fnlp/SpeechTokenizer: the one model in it is a folder of its own
    settings = read_config(folder)
    # the official SpeechTokenizer's does not say what it is
    kind = str(settings.get("model_type", "speechtokenizer" if "semantic_dimension" in settings else None))
    if kind in FOREIGN:
        return FOREIGN.get(kind)(folder)
    if kind not in MODELS:
        known = [*MODELS, *(name for name in FOREIGN if name[0] != "." and name[-1] != ":")]
        sentence = f"{folder}/config.json: " + unknown("model type", kind, known)
        raise HubError(f"{sentence}; tokenizers of transformers load as hf:DIRECTORY or hf:org/repo")
    return MODELS.get(kind).from_pretrained(folder)


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = ["*config.json", "vocab.json", "added_tokens.json", "model*.safetensors*"]
        folder = Path(snapshot_download(repository, allow_patterns=files))
        if not any(folder.glob("*.safetensors")):  # an old repository, with pickles: read by `senone.interop` alone
            files += ["pytorch_model*.bin*", "*SpeechTokenizer*.pt", "*ckpt.dev"]
            folder = Path(snapshot_download(repository, allow_patterns=files))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HubError(f"cannot fetch '{repository}' from the hub: {first}") from None
