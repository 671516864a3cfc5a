"""Tokenizers of Hugging Face's transformers behind our contract, and our codecs behind transformers' Auto classes.

`senone.load("hf:org/name")` and `senone.load("hf:DIR")` open EnCodec, DAC, Mimi, X-codec, X-codec2, NeuCodec and
whatever else has `encode` to `audio_codes` and `decode`. `register()` is the other way round. Needs the extra `hf`.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone.audio import Audio
from senone.interop import InteropError
from senone.models.w2vbert import filter_bank
from senone.quantize import Quantized
from senone.tokenizer import AudioTokenizer, Context

# Keys of config.json that say who wrote it, not what it is.
VOLATILE = ("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version")
PROBE = 4  # frames coded once to see what comes out


class Finding(NamedTuple):
    """What the bare model does where a law says otherwise."""

    law: str
    share: float
    detail: str


@dataclass(frozen=True)
class Config:
    """settings: the model's own config.json. levels, ragged: what came out when it was tried (0: not yet).
    block, context: seconds coded at once, and before and after that.

    A recording up to block + context long is one window: its codes are those of the bare model. In a longer one the
    model sees `context` around each block; where it reaches further (attention, an LSTM, a norm over time), codes near
    the edges of blocks may differ from those of the whole, but never with the batch or the pieces it comes in.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    levels: int = 0
    ragged: bool = False
    block: float = 30.0
    context: float = 5.0


class Given(nn.Module):
    """The quantizer of a model that quantises by itself: its vectors are the codes."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, z: Tensor, levels: Tensor | int | None = None) -> Quantized:
        return Quantized(z, self.encode(z, levels if isinstance(levels, int) else None), {})

    def encode(self, z: Tensor, levels: int | None = None) -> Tensor:
        return z[:, :levels].long()

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float()  # exact: no codebook has 2**24 entries


class Foreign(AudioTokenizer):
    """A tokenizer of transformers: (batch 1 samples) -> codes -> (batch 1 samples), one row and one window at a time.

    Rows never meet in a batch, so padding cannot change them. An end inside a frame is left to a model that fills it up
    by itself (`ragged`: EnCodec, Mimi, X-codec2), else filled up with zeros, as transformers' feature extractors do.
    NeuCodec hears 16 kHz and speaks 24: its clock is that of its voice.
    """

    Config = Config
    model_type = "senone_transformers"
    quantizer: Given
    causal = False
    exact = False  # the codes are those that transformers computes: in single precision

    def __init__(self, config: Config, model: Any = None) -> None:
        """`model`: used as it is, and must be what the config says; without it one is made from the config.

        Raises InteropError for what is no tokenizer of one channel with all its codebooks on one clock.
        """
        super().__init__()
        with _quiet():
            self.model: Any = _built(config.settings) if model is None else model
        theirs, name = self.model.config, type(self.model).__name__
        if not (hasattr(self.model, "encode") and hasattr(self.model, "decode")):
            raise InteropError(f"a {name} of transformers has no encode and decode: it is no audio tokenizer")
        for key, (fine, why) in REFUSED.items():
            if getattr(theirs, key, fine) != fine:
                raise InteropError(f"{name} has {key} {getattr(theirs, key)}: {why}")
        rates = (getattr(theirs, key, None) for key in ("output_sampling_rate", "sampling_rate", "sample_rate"))
        self.sample_rate = next((rate for rate in rates if rate), 0)
        hop = getattr(theirs, "hop_length", None) or self.sample_rate / getattr(theirs, "frame_rate", float("inf"))
        self.hop = round(hop)
        steps = getattr(theirs, "quantization_levels", None)
        size = prod(steps) if steps else getattr(theirs, "codebook_size", None)
        if not (self.hop and size):
            raise InteropError(f"the config of a {name} lacks a sample rate, a hop, or the size of a codebook")
        self.block, self.context = config.block, Context(config.context, config.context)
        self.eval()
        if not config.levels:  # never before weights are loaded: Mimi keeps tables that it made of them
            config = replace(config, levels=self._tried(), ragged=self._completes())
        self.config, self.ragged = config, config.ragged
        self.quantizer = Given((size,) * config.levels)

    def train(self, mode: bool = True) -> "Foreign":
        """Nothing here is trained: dropout stays off."""
        return super().train(False)

    @torch.no_grad()
    def analyse(
        self, wave: Float[Tensor, "batch 1 samples"], state: None = None
    ) -> tuple[Float[Tensor, "batch level frame"], None]:
        """The codes of a window, as floats."""
        return self.codes(self.inputs(wave))[:, :, : -(-wave.shape[2] // self.hop)].float(), None

    @torch.no_grad()
    def synthesise(
        self, z: Float[Tensor, "batch level frame"], state: None = None
    ) -> tuple[Float[Tensor, "batch 1 samples"], None]:
        """A window of codes to sound: exactly a hop for a frame, where a decoder falls short filled up with zeros."""
        wave = self.sound(z.long())
        return F.pad(wave, (0, z.shape[2] * self.hop - wave.shape[2])), None

    def inputs(self, wave: Float[Tensor, "batch 1 samples"]) -> dict[str, Tensor]:
        """What the model's feature extractor gives it: the wave, and for X-codec2 and NeuCodec w2v-BERT's filter bank.

        The extractor of X-codec2 appends 1 to `hop` zeros to any recording, so one of whole hops gets a frame more than
        it fills. That of NeuCodec does the same, but its model leaves out a frame: only whole hops come to it here.
        """
        theirs = self.model.config
        heard = getattr(theirs, "input_sampling_rate", self.sample_rate)
        if heard != self.sample_rate:
            rows = [Audio(row.cpu().float(), self.sample_rate).resample(heard).wave for row in wave]
            wave = torch.stack(rows).to(wave)
        if "input_features" not in _takes(self.model.encode):
            return {"input_values": wave}
        hop = prod(theirs.downsampling_ratios)
        if theirs.model_type == "neucodec":
            wave = padded = F.pad(wave, (0, hop))
        else:
            wave = F.pad(wave, (0, hop - wave.shape[2] % hop))
            padded = F.pad(wave, (hop // 2, hop // 2))
        count = torch.full((len(wave),), padded.shape[2], device=wave.device)
        mels = theirs.semantic_model_config.feature_projection_input_dim // 2
        return {"input_values": wave, "input_features": filter_bank(padded[:, 0], count, mels).to(wave)}

    def codes(self, inputs: dict[str, Tensor]) -> Any:
        """All levels of what the bare model makes of `inputs`, (batch, level, frame)."""
        more = {}
        if "bandwidth" in _takes(self.model.encode):  # left out, EnCodec uses the lowest
            more["bandwidth"] = self.model.config.target_bandwidths[-1]
        codes = getattr(self.model.encode(**inputs, **more), "audio_codes", None)
        return codes[0] if isinstance(codes, Tensor) and codes.ndim == 4 else codes

    def sound(self, codes: Tensor) -> Float[Tensor, "batch 1 samples"]:
        """What the bare model makes of (batch, level, frame)."""
        if "audio_scales" in _takes(self.model.decode):  # EnCodec: one stretch of codes, its loudness unchanged
            wave = self.model.decode(audio_codes=codes[None], audio_scales=[None]).audio_values
        else:
            wave = self.model.decode(audio_codes=codes).audio_values
        return wave.reshape(len(codes), 1, -1)

    @torch.no_grad()
    def _tried(self) -> int:
        """The number of levels; raises InteropError unless some frames of silence become as many frames of codes."""
        name = type(self.model).__name__
        try:
            codes = self.codes(self.inputs(self._like().new_zeros(1, 1, PROBE * self.hop)))
        except Exception as error:  # whatever a foreign model may raise
            raise InteropError(f"a {name} cannot encode: {_first(error)}") from None
        if codes is None:
            raise InteropError(f"a {name} gives no audio_codes: it is no tokenizer of discrete units")
        if not isinstance(codes, Tensor):
            frames = ", ".join(str(level.shape[-1]) for level in codes)
            raise InteropError(f"a {name} has codebooks at several rates ({frames} frames), senone's codes have one")
        spare = self.model.config.model_type == "xcodec2"
        if codes.shape[2] != PROBE + spare:
            raise InteropError(f"a {name} makes {codes.shape[2]} frames of {PROBE} hops of {self.hop} samples")
        return codes.shape[1]

    @torch.no_grad()
    def _completes(self) -> bool:
        """Whether a sample beyond whole frames makes one frame more."""
        samples = self._like().new_zeros(1, 1, (PROBE - 1) * self.hop + 1)
        try:
            return self.codes(self.inputs(samples)).shape[2] == PROBE
        except Exception:  # whatever a foreign model may raise
            return False

    @torch.no_grad()
    def bare(self, seconds: float = 1.0) -> Iterator[Finding]:
        """What the model does by itself, on noise: which laws it owes to this class.

        length: samples that come back. batch: codes of a row zero-padded to twice its length, masked as the model takes
        it, beside those of the row alone. chunks: codes of two pieces, beside those of the whole.
        """
        frames = max(1, round(seconds * self.sample_rate / self.hop))
        samples = frames * self.hop
        noise = 0.1 * torch.randn(1, 1, 2 * samples, generator=torch.Generator().manual_seed(0)).to(self._like())
        short, late, long = map(self.inputs, (noise[:, :, :samples], noise[:, :, samples:], noise))
        alone, whole = self.codes(short), self.codes(long)[:, :, : 2 * frames]
        back = self.sound(alone).shape[2]
        yield Finding("length", float(back == samples), f"{samples} samples come back as {back}")
        alone, late = alone[:, :, :frames], self.codes(late)[:, :, :frames]
        padded = self.codes(self._batch([short, long]))[:1, :, :frames]
        share = float((padded == alone).double().mean())
        yield Finding("batch", share, f"{share:.1%} of the codes stay when a row is padded to twice its length")
        share = float((torch.cat([alone, late], 2) == whole).double().mean())
        yield Finding("chunks", share, f"{share:.1%} of the codes stay when it comes in pieces of {seconds:g} s")

    def _batch(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows as the feature extractors batch them: waves filled up with zeros, features with ones, and masks."""
        pad, takes = partial(nn.utils.rnn.pad_sequence, batch_first=True), _takes(self.model.encode)
        batch = {"input_values": pad([row["input_values"][0, 0] for row in rows])[:, None]}
        if "padding_mask" in takes:
            batch["padding_mask"] = pad([torch.ones_like(row["input_values"][0, 0]).long() for row in rows])
        if "input_features" in takes:
            features = [row["input_features"][0] for row in rows]
            batch["input_features"] = pad(features, padding_value=1.0)
            batch["input_features_mask"] = pad([torch.ones_like(x[:, 0]).long() for x in features])
        return batch


# Settings that codes alone cannot keep: the value that is fine, and why others are not.
REFUSED = {
    "audio_channels": (1, "senone's codes are of one channel"),
    "normalize": (False, "the loudness that it takes off is not in the codes"),
    "chunk_length_s": (None, "its stretches of codes overlap, so codes are not on one clock"),
}


def load(name: str | Path) -> Foreign:
    """The tokenizer in a directory of transformers, or `org/name` of the hub, in single precision; safetensors only.

    Raises InteropError naming it: nothing there, no tokenizer, weights that are cut short, missing, unknown, misshapen.
    """
    auto, text = _transformers(), str(name)
    if not text:
        raise InteropError("'hf:' names nothing: say hf:DIRECTORY or hf:org/name")
    if text.startswith((".", "/", "~")) and not Path(text).is_dir():
        raise InteropError(f"'hf:{text}' is not a directory")
    try:
        with _quiet():
            settings = dict(auto.PreTrainedConfig.get_config_dict(text)[0])
            theirs = auto.AutoConfig.from_pretrained(text, trust_remote_code=False)
            options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
            options["ignore_mismatched_sizes"] = True  # they are named below; its own error names none
            model, report = auto.AutoModel.from_pretrained(text, config=theirs, output_loading_info=True, **options)
    except Exception as error:  # transformers, safetensors, hub, network: many kinds
        raise InteropError(f"'hf:{text}' cannot be loaded: {_first(error)}") from None
    for title, key in (("lacks", "missing_keys"), ("has unknown", "unexpected_keys")):
        if keys := sorted(report[key]):
            raise InteropError(f"'hf:{text}' {title} {len(keys)} weights, first '{keys[0]}'")
    for key, have, want in report["mismatched_keys"]:
        raise InteropError(f"'hf:{text}': '{key}' is {tuple(have)}, the config says {tuple(want)}")
    return Foreign(Config({key: value for key, value in settings.items() if key not in VOLATILE}), model)


def register() -> None:
    """Teach transformers' Auto classes our codecs: `AutoModel.from_pretrained(DIR of a senone codec)`.

    The model's `encode(input_values, padding_mask, num_quantizers)` and `decode(audio_codes, audio_codes_mask,
    padding_mask)` are in transformers' conventions; codes are those of the codec. Calling it again changes nothing.
    """
    from senone.interop.auto import register

    register()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InteropError("tokenizers of transformers need it installed: pip install 'senone[hf]'") from None
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and reports: what matters of them is raised."""
    logging = _transformers().logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _built(settings: dict[str, Any]) -> Any:
    auto = _transformers()
    try:
        return auto.AutoModel.from_config(auto.AutoConfig.for_model(**settings), trust_remote_code=False)
    except Exception as error:
        raise InteropError(f"settings make no model of transformers: {_first(error)}") from None


def _takes(method: Any) -> Any:
    return inspect.signature(method).parameters


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
