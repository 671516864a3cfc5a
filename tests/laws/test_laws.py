"""Codecs of every kind keep the laws, and for each law there are codecs that break it and nothing else."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from senone.audio import Audio
from senone.codes import Codes
from senone.errors import SenoneError
from senone.quantize.fsq import ResidualFSQ
from senone.quantize.vq import ResidualVQ
from senone.testing import laws
from senone.tokenizer import AudioTokenizer, Context

HOP, RATE, DIM, LEVELS = 8, 800, 6, 3
LAWS = ["length", "batch", "chunks", "levels", "time", "sessions", "storage", "extremes"]


@dataclass(frozen=True)
class Config:
    beam: int = 0  # of a residual VQ; 0: FSQ


class Toy(AudioTokenizer):
    """A linear layer on a frame and the one before, either way."""

    Config = Config
    model_type = "toy"

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config, self.sample_rate, self.hop = config, RATE, HOP
        torch.manual_seed(0)
        self.inside, self.outside = nn.Linear(2 * HOP, DIM), nn.Linear(2 * DIM, HOP)
        self.quantizer = ResidualFSQ(DIM, (4, 4), LEVELS)
        if config.beam:
            self.quantizer = ResidualVQ(DIM, 8, LEVELS, beam=config.beam)
        self.context = Context(HOP / RATE)

    def analyse(self, wave, state=None):
        frames = wave.view(len(wave), -1, HOP).transpose(1, 2)
        x, state = with_past(frames, state)
        return self.inside(3 * x.transpose(1, 2)).transpose(1, 2), state

    def synthesise(self, z, state=None):
        x, state = with_past(z, state)
        return self.outside(x.transpose(1, 2)).reshape(len(z), 1, -1), state


def with_past(x, state):
    past = x.new_zeros(*x.shape[:2], 1) if state is None else state
    return torch.cat([torch.cat([past, x[:, :, :-1]], 2), x], 1), x[:, :, -1:].clone()


class Late(Toy):
    """An overlap: the output runs three samples behind."""

    def __init__(self, config=Config()):
        super().__init__(config)
        self.delay = 3

    def synthesise(self, z, state=None):
        inner, tail = (None, z.new_zeros(len(z), 1, 3)) if state is None else state
        wave, inner = super().synthesise(z, inner)
        wave = torch.cat([tail, wave], 2)
        return wave[:, :, :-3], [inner, wave[:, :, -3:].clone()]


class Centred(Toy):
    """Sees one frame of future; no state."""

    def __init__(self, config=Config()):
        super().__init__(config)
        self.causal, self.context = False, Context(HOP / RATE, HOP / RATE)
        self.inside, self.outside = nn.Linear(3 * HOP, DIM), nn.Linear(3 * DIM, HOP)

    def analyse(self, wave, state=None):
        frames = wave.view(len(wave), -1, HOP)
        return self.inside(3 * around(frames)).transpose(1, 2), None

    def synthesise(self, z, state=None):
        return self.outside(around(z.transpose(1, 2))).reshape(len(z), 1, -1), None


def around(x):
    padded = nn.functional.pad(x, (0, 0, 1, 1))
    return torch.cat([padded[:, :-2], x, padded[:, 2:]], 2)


class Global(Toy):
    """Scales by the loudness of the whole recording, as a group norm over time does, and says so."""

    def __init__(self, config=Config()):
        super().__init__(config)
        self.causal, self.context = False, Context(float("inf"), float("inf"))

    def analyse(self, wave, state=None):
        return super().analyse(wave / (1 + wave.square().mean().sqrt()))


class Semantic(AudioTokenizer):
    """One level, no decoder, no weights."""

    Config = Config
    model_type = "semantic"

    def __init__(self, config=Config()):
        super().__init__()
        self.config, self.sample_rate, self.hop, self.quantizer = config, RATE, HOP, Sign()

    def analyse(self, wave, state=None):
        return wave.view(len(wave), -1, HOP).mean(2)[:, None], state


class Sign:
    sizes = (2,)

    def encode(self, z, levels=None):
        return (z > 1e-11).long()


def residual(beam=1):
    return Toy(Config(beam=beam))


@pytest.mark.parametrize("kind", [Toy, Late, Centred, Global, Semantic, residual, lambda: residual(beam=4)])
def test_the_laws_hold(kind):
    results = list(laws(kind()))
    assert [law.name for law in results] == LAWS
    assert not [law for law in results if not law.ok]
    no_decoder = [law.name for law in results if "no decoder" in law.detail]
    assert no_decoder == (["length", "time"] if kind is Semantic else [])


class Rounded(Toy):
    """1: says that the recording ends with the frame."""

    def encode(self, audio, **options):
        codes = super().encode(audio, **options)
        return Codes(codes.data, -(-codes.samples // HOP) * HOP, codes.spec)


class Mixing(Toy):
    """2: a normalisation over the batch."""

    def analyse(self, wave, state=None):
        z, state = super().analyse(wave, state)
        return z + z.mean(0), state


class Forgetful(Toy):
    """3: a convolution with padding instead of state."""

    def analyse(self, wave, state=None):
        return super().analyse(wave, None)


class Clicking(Toy):
    """3: the same in the decoder."""

    def synthesise(self, z, state=None):
        return super().synthesise(z, None)


class Short(Centred):
    """3: the encoder sees more of the future than it says."""

    def __init__(self, config=Config()):
        super().__init__(config)
        self.context = Context(HOP / RATE, 0.0)
        nn.init.zeros_(self.outside.weight[:, 2 * DIM :])


class Rescaling(ResidualFSQ):
    def encode(self, z, levels=None):
        return super().encode(z if levels in (None, LEVELS) else 2 * z, levels)


class Unnested(Toy):
    """4: another code where fewer levels are asked for."""

    def __init__(self, config=Config()):
        super().__init__(config)
        self.quantizer = Rescaling(DIM, (4, 4), LEVELS)


class Dated(Toy):
    """5: the output depends on the time since the start."""

    def synthesise(self, z, state=None):
        frame, inner = (0, None) if state is None else state
        wave, inner = super().synthesise(z, inner)
        gain = 1 + 0.1 * torch.sin(torch.arange(frame, frame + z.shape[2])).repeat_interleave(HOP)
        return wave * gain, (frame + z.shape[2], inner)


class Hidden(Toy):
    """6: state in the module."""

    def analyse(self, wave, state=None):
        z, self.memory = super().analyse(wave, None if state is None else self.memory)
        return z, {"inside": True}


class InPlace(Toy):
    """6: state in the caller's tensor, overwritten."""

    def analyse(self, wave, state=None):
        z, new = super().analyse(wave, state)
        return z, new if state is None else state.copy_(new)


class Unsaved(Toy):
    """7: a weight that is not in the file."""

    def __init__(self, config=Config()):
        super().__init__(config)
        self.offset = torch.rand(1, generator=torch.Generator().manual_seed(Unsaved.made))
        Unsaved.made += 1

    made = 0

    def analyse(self, wave, state=None):
        z, state = super().analyse(wave, state)
        return z + self.offset.to(z), state


class Anonymous(Toy):
    """7: the same fingerprint whatever the weights."""

    @property
    def spec(self):
        return replace(super().spec, fingerprint="0" * 16)


class Swallowing(Toy):
    """8: NaN taken for silence."""

    def _vectors(self, wave, *rest):
        return super()._vectors(torch.nan_to_num(wave), *rest)


class Hoarding(Toy):
    """8: a state that grows for ever."""

    def analyse(self, wave, state=None):
        kept, inner = ([], None) if state is None else state
        z, inner = super().analyse(wave, inner)
        return z, ([*kept, z], inner)


MUTANTS = {
    "length": [Rounded],
    "batch": [Mixing],
    "chunks": [Forgetful, Clicking, Short],
    "levels": [Unnested],
    "time": [Dated],
    "sessions": [Hidden, InPlace],
    "storage": [Unsaved, Anonymous],
    "extremes": [Swallowing, Hoarding],
}


@pytest.mark.parametrize("name, mutant", [(name, mutant) for name, found in MUTANTS.items() for mutant in found])
def test_each_law_catches_who_breaks_it(name, mutant):
    broken = [law for law in laws(mutant(), examples=6) if not law.ok]
    assert [law.name for law in broken] == [name]
    assert "raises" not in broken[0].detail


def test_an_error_of_the_author_breaks_a_law_and_is_told():
    class Raising(Toy):
        def synthesise(self, z, state=None):
            raise ZeroDivisionError("one over nothing")

    broken = {law.name: law.detail for law in laws(Raising()) if not law.ok}
    assert broken["length"] == "raises ZeroDivisionError: one over nothing"


class Wide(AudioTokenizer):
    """A frame as it is, many numbers for each, and a fifth of a block before and after it."""

    Config, model_type, causal = Config, "wide", False

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config, self.sample_rate, self.hop = config, 2000, 2
        self.block, self.context = 1.0, Context(0.2, 0.2)
        self.inside, self.outside = nn.Linear(2, 256), nn.Linear(256, 2)
        self.quantizer = ResidualFSQ(256, (4, 4), 1)

    def analyse(self, wave, state=None):
        return self.inside(wave.view(len(wave), -1, 2)).transpose(1, 2), None

    def synthesise(self, z, state=None):
        return self.outside(z.transpose(1, 2)).reshape(len(z), 1, -1), None


def test_a_past_that_is_not_full_yet_is_no_leak():
    """Codes come a block late, so a decoder's past fills in its third block: 200 KB here, more than a leak may be."""
    told = {law.name: law for law in laws(Wide(), examples=1, hours=1e-4)}
    assert told["extremes"].ok and told["extremes"].detail.endswith("6 seconds in bounded memory"), told["extremes"]


def test_the_laws_leave_the_training_mode_alone_and_want_a_tokenizer():
    toy = Toy().train()
    assert all(law.ok for law in laws(toy, examples=2)) and toy.training
    with pytest.raises(SenoneError, match="not a Linear"):
        next(laws(nn.Linear(1, 1)))  # type: ignore[arg-type]


def test_a_flaky_codec_is_told_so():
    class Random(Toy):
        def analyse(self, wave, state=None):
            z, state = super().analyse(wave, state)
            return z + torch.rand_like(z), state

    broken = {law.name: law.detail for law in laws(Random()) if not law.ok}
    assert {"batch", "chunks", "storage"} <= broken.keys()


def test_audio_is_a_function_of_codes_for_long_recordings_too():
    toy, sound = Toy(), Audio(torch.rand(1, 40 * RATE) - 0.5, RATE)  # four blocks
    whole = toy.encode(sound)
    session = toy.stream()
    parts = [session.encode(wave, last=i == 39).data for i, wave in enumerate(sound.wave.split(RATE, 1))]
    assert torch.equal(torch.cat(parts, 2), whole.data)
