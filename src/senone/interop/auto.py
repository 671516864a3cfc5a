"""Our codecs as models of transformers: what `senone.interop.transformers.register` registers. Imports transformers."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from senone import config as configs
from senone import hub
from senone.audio import Audio
from senone.codes import Codes
from senone.interop import InteropError
from senone.tokenizer import AudioTokenizer

# What `from_pretrained` of transformers takes and a codec has no use for.
REFUSED = ("dtype", "torch_dtype", "device_map", "quantization_config", "revision", "subfolder")


@dataclass
class CodecOutput(ModelOutput):
    """audio_codes: (batch, level, frame). audio_codes_mask: 1 up to a row's end. audio_values: (batch, 1, samples)."""

    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    audio_values: Tensor | None = None


class CodecModel(PreTrainedModel):
    """A codec of ours in transformers' conventions; `codec` is the codec itself. Codes are those of `codec.encode`."""

    config_class: Any = PreTrainedConfig
    main_input_name = "input_values"
    codec: AudioTokenizer

    def __init__(self, config: Any, codec: AudioTokenizer | None = None) -> None:
        super().__init__(config)
        if codec is None:
            kind = hub.MODELS.get(config.model_type)
            settings = {f.name: getattr(config, f.name) for f in fields(kind.Config) if hasattr(config, f.name)}
            codec = kind(configs.from_dict(kind.Config, settings)).eval()
        assert codec is not None
        self.codec = codec
        config.sampling_rate, config.hop_length = codec.sample_rate, codec.hop
        config.num_quantizers, config.codebook_size = len(codec.quantizer.sizes), codec.quantizer.sizes[0]

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **options: Any) -> "CodecModel":
        """What `senone.load` gives for this name. Raises HubError, or InteropError for options without a use."""
        for key in REFUSED:
            if options.get(key) is not None:
                raise InteropError(f"a codec of senone is loaded as it is, in single precision: it takes no {key}")
        codec = hub.load(name)
        return cls(config or AutoConfig.from_pretrained(name), codec).eval()

    def save_pretrained(self, folder: Any, *args: Any, **options: Any) -> None:
        """As the codec saves itself: `from_pretrained` and `senone.load` open it."""
        self.codec.save_pretrained(folder)

    def encode(
        self,
        input_values: Float[Tensor, "batch *channel samples"],
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> CodecOutput:
        """padding_mask: 1 where a row is sound, 0 behind its end; rows get the codes that they get alone."""
        lengths = [input_values.shape[-1]] * len(input_values)
        if padding_mask is not None:
            lengths = _lengths(padding_mask).tolist()
        waves = input_values.detach().reshape(len(input_values), -1, input_values.shape[-1]).float().cpu()
        rows = [Audio(row[:, : int(n)], self.codec.sample_rate) for row, n in zip(waves, lengths, strict=True)]
        codes = self.codec.encode(rows, levels=num_quantizers)
        mask = torch.arange(codes.data.shape[2]) < (-(-codes.samples // self.codec.hop))[:, None]
        where = input_values.device
        return CodecOutput(audio_codes=codes.data.to(where), audio_codes_mask=mask.long().to(where))

    def decode(
        self,
        audio_codes: Int[Tensor, "batch level frame"],
        audio_codes_mask: Bool[Tensor, "batch frame"] | Int[Tensor, "batch frame"] | None = None,
        padding_mask: Tensor | None = None,
    ) -> CodecOutput:
        """Sound, zeros behind a row's end: as the mask of its samples has it, or whole frames by that of its codes."""
        frames = torch.full((len(audio_codes),), audio_codes.shape[2])
        if audio_codes_mask is not None:
            frames = audio_codes_mask.sum(-1).cpu()
        samples = frames * self.codec.hop
        if padding_mask is not None:
            samples = _lengths(padding_mask)
        codes = Codes(audio_codes.cpu(), samples, self.codec.spec)
        rows = [audio.wave[0] for audio in self.codec.decode(codes)]
        wave = nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, None]
        return CodecOutput(audio_values=wave.to(audio_codes.device))

    def forward(
        self,
        input_values: Float[Tensor, "batch *channel samples"],
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        **options: Any,
    ) -> CodecOutput:
        """Codes, and the sound that they make: as many samples as came in."""
        if padding_mask is None:
            padding_mask = torch.ones(len(input_values), input_values.shape[-1], device=input_values.device).long()
        coded = self.encode(input_values, padding_mask, num_quantizers)
        assert coded.audio_codes is not None
        return CodecOutput(
            audio_codes=coded.audio_codes,
            audio_codes_mask=coded.audio_codes_mask,
            audio_values=self.decode(coded.audio_codes, padding_mask=padding_mask).audio_values,
        )


def _lengths(mask: Tensor) -> Int[Tensor, "batch"]:
    """Samples of each row, by a mask of (batch, samples) or of any number of channels, which are alike."""
    return mask.reshape(len(mask), -1, mask.shape[-1])[:, 0].sum(-1).cpu()


def register() -> None:
    """See `senone.interop.transformers.register`."""
    for name in hub.MODELS:
        kind = hub.MODELS.get(name)
        if isinstance(kind, type) and issubclass(kind, AudioTokenizer):
            config = type(f"{kind.__name__}Config", (PreTrainedConfig,), {"model_type": name})
            model = type(f"{kind.__name__}Model", (CodecModel,), {"config_class": config})
            AutoConfig.register(name, config, exist_ok=True)
            for auto in (AutoModel, AutoModelForAudioTokenization):
                auto.register(config, model, exist_ok=True)
