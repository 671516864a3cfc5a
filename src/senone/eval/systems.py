"""What can be measured, by name: our tokenizers, the classical codecs as programs, anyone's command, files.

    NAME | DIR | org/repo | hf:DIR | file.py:Class     a tokenizer; with @K at the end, its first K levels
    opus:12k  amrwb:12.65  codec2:3200  speex:8  speex:nb3  lyra:6     what Debian packages (and Google) have
    identity  pcm:8k                                    anchors: the wave itself, and all there is below 4 kHz
    cmd:"enc {in} {tok} && dec {tok} {out}"             a shell command from a WAV file to a WAV file
    files:DIR                                           decoded before, found by the name of the utterance

`system(name).code(wave, rate)` gives what comes out and the bits in between. A system whose program or file is not
there says so in `missing`; it is n/a in a table, not an error.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log2
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float32, Int

from senone import hub
from senone.audio import Audio
from senone.bitstream import Writer
from senone.codes import Codes
from senone.data.manifest import SUFFIXES
from senone.eval.metrics import RATE
from senone.eval.units import EvalError
from senone.tokenizer import AudioTokenizer

Wave = Float32[np.ndarray, "samples"]


@dataclass(frozen=True)
class Coded:
    """What a system made of a recording.

    wave: mono at RATE; None without a decoder. bits: of the file or the packets in between; None if nobody knows.
    codes: (level, frame); None where there are none. seconds: of work, for both ways.
    """

    wave: Wave | None
    bits: int | None
    codes: Int[np.ndarray, "level frame"] | None
    seconds: float


@dataclass(frozen=True)
class System:
    """A codec at one rate.

    fingerprint: changes when the output may. kbps: nominal; None if nobody knows. sizes, frame_rate: of its codes.
    causal, latency (seconds, computing aside): None where not known. delay: samples at RATE by which the output is
    known to run behind. waveform: False where the decoder keeps no phase. group: systems of one group share what they
    compute. missing: the sentence on what has to be installed, empty if nothing.
    """

    name: str
    fingerprint: str
    run: Callable[[Wave, int, str], Coded]
    kbps: float | None = None
    sizes: tuple[int, ...] = ()
    frame_rate: float | None = None
    causal: bool | None = None
    latency: float | None = None
    delay: int = 0
    waveform: bool = True
    group: str = ""
    missing: str = ""

    def code(self, wave: Wave, rate: int, utterance: str = "") -> Coded:
        """There and back. utterance: its name, for systems that look files up. Raises SenoneError."""
        if self.missing:
            raise EvalError(self.missing)
        return self.run(wave, rate, utterance)


def at(wave: Wave, rate: int, target: int) -> Wave:
    """Resampled (soxr, high quality)."""
    return Audio(torch.from_numpy(np.ascontiguousarray(wave))[None], rate).resample(target).wave[0].numpy()


# prefix -> what makes the system of a name and of what follows the colon
KINDS = hub.Registry(
    "codec",
    {
        "amrwb": "senone.eval.peers:amrwb",
        "cmd": "senone.eval.peers:command",
        "codec2": "senone.eval.peers:codec2",
        "files": "senone.eval.systems:files",
        "identity": "senone.eval.peers:identity",
        "lyra": "senone.eval.peers:lyra",
        "opus": "senone.eval.peers:opus",
        "pcm": "senone.eval.peers:pcm",
        "speex": "senone.eval.peers:speex",
    },
)


@cache
def system(name: str) -> System:
    """The system of that name, made once in a process. Raises EvalError, or HubError for a tokenizer nobody knows."""
    kind, colon, setting = name.partition(":")
    if kind in KINDS and bool(colon) is (kind != "identity"):
        return KINDS.get(kind)(name, setting)
    return _tokenizer(name)


class Encoder:
    """A tokenizer that keeps the codes of the last recording, at as many levels as any of its systems wants."""

    def __init__(self, name: str) -> None:
        threads = torch.get_num_threads()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a class without weights of its own gets the same in every process,
            torch.set_num_threads(1)  # whose threads would add in another order
            try:
                model = hub.load(name)
            finally:
                torch.set_num_threads(threads)
        if not isinstance(model, AudioTokenizer):
            raise EvalError(f"'{name}' is no tokenizer but a {type(model).__name__}")
        self.model, self.most = model, 0
        self._last: tuple[tuple[str, int, int], Codes, float] | None = None

    def codes(self, wave: Wave, rate: int, levels: int) -> tuple[Codes, float]:
        """Codes at `levels`, and the seconds that encoding took (which may have been for another level count)."""
        key = hashlib.sha256(wave.tobytes()).hexdigest(), rate, self.most
        if self._last is None or self._last[0] != key:
            begin = perf_counter()
            found = self.model.encode(Audio(torch.from_numpy(wave)[None], rate), levels=self.most)
            self._last = key, found, perf_counter() - begin
        return self._last[1].levels(levels), self._last[2]


_encoder = cache(Encoder)


def at_levels(name: str) -> tuple[str, int | None]:
    """A tokenizer's name and the number after its last @, if it is one."""
    model, _, levels = name.rpartition("@")
    return (model, int(levels)) if model and levels.isdigit() else (name, None)


def at_several(name: str, levels: Sequence[int]) -> list[str]:
    """The names of a tokenizer at those of `levels` that it has; any other system stays as it is.

    Raises EvalError where it has none of them.
    """
    if name.partition(":")[0] in KINDS or at_levels(name)[1] is not None:
        return [name]
    most = _encoder(name).model.levels_for()
    found = [f"{name}@{count}" for count in levels if 1 <= count <= most]
    if not found:
        raise EvalError(f"'{name}' has {most} level{'s' if most > 1 else ''}, none of --levels {levels}")
    return found


def _tokenizer(name: str) -> System:
    model, levels = at_levels(name)
    encoder = _encoder(model)
    tokenizer = encoder.model
    count = tokenizer.levels_for(levels)
    encoder.most = max(encoder.most, count)
    spec = tokenizer.spec
    sizes = spec.sizes[:count]

    def run(wave: Wave, rate: int, utterance: str) -> Coded:
        codes, spent = encoder.codes(wave, rate, count)
        begin = perf_counter()
        heard = at(tokenizer.decode(codes)[0].wave[0].numpy(), spec.sample_rate, RATE) if tokenizer.decodes else None
        spent += perf_counter() - begin
        with tempfile.TemporaryDirectory() as folder:
            with Writer(f"{folder}/x.sno", spec, count) as writer:
                writer.write(codes)
            bits = 8 * os.path.getsize(f"{folder}/x.sno")
        return Coded(heard, bits, codes.data[0].numpy(), spent)

    return System(
        name, f"{spec.fingerprint}@{count}-{_program(model)}", run,
        kbps=float(spec.frame_rate) * sum(map(log2, sizes)) / 1000, sizes=sizes, frame_rate=float(spec.frame_rate),
        causal=tokenizer.causal, latency=tokenizer.latency, group=model,
    )  # fmt: skip


def _program(model: str) -> str:
    """Hash of the code that tokens depend on, the user's own file included."""
    source = Path(hub.__file__).parent
    files = [path for part in ("models", "nn", "quantize", "interop") for path in sorted(source.glob(f"{part}/*.py"))]
    files += [source / f"{part}.py" for part in ("tokenizer", "features")]
    file = model.partition("@")[0].rpartition(":")[0]
    return digest(*(path.read_bytes() for path in [*files, *([Path(file)] if file.endswith(".py") else [])]))[:8]


def files(name: str, setting: str) -> System:
    """Sound that somebody has decoded: the file of a folder whose path, without its suffix, is the utterance's."""
    places = _places(Path(setting))

    def run(wave: Wave, rate: int, utterance: str) -> Coded:
        if _plain(utterance) not in places:
            raise EvalError(f"{setting} has no '{_plain(utterance)}'")
        return Coded(load(places[_plain(utterance)]), None, None, 0.0)

    facts = digest(*(part for key, path in places.items() for part in (key.encode(), path.read_bytes())))
    return System(name, f"files-{facts[:16]}", run, group=name)


def same_names(folder: Path, utterances: Sequence[str], more: bool = False) -> None:
    """Raise EvalError naming the first recording that only one side has, and how many each has.

    more: the folder may hold others, as where originals could not be read.
    """
    theirs, ours = _places(folder).keys(), {_plain(name) for name in utterances}
    counts = f"there are {len(ours)} originals and {len(theirs)} files in {folder}"
    for name in sorted(ours - theirs):
        raise EvalError(f"{folder} has no '{name}'; {counts}")
    for name in sorted(theirs - ours) if not more else ():
        raise EvalError(f"'{name}' of {folder} has no original; {counts}")


def _places(folder: Path) -> dict[str, Path]:
    """Audio files by path below the folder, without suffix."""
    if not folder.is_dir():
        raise EvalError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return {_plain(path.relative_to(folder).as_posix()): path for path in paths}


def _plain(name: str) -> str:
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix()


def digest(*parts: bytes) -> str:
    """SHA-256 of the parts, each with its length."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def save(path: str | Path, wave: Wave, rate: int = RATE) -> None:
    Audio(torch.from_numpy(wave)[None], rate).save(path)


def load(path: str | Path) -> Wave:
    return Audio.read(path).mono().resample(RATE).wave[0].numpy()
