"""What codec_quality.py measures: one function per metric, on a reference and a decoded wave (16 kHz, mono, aligned).

Every metric gives (value, weight), and a system's score is sum(value) / sum(weight): weight 1 makes a mean over
utterances, errors over words makes a corpus word error rate, kilobits over seconds a mean bit rate. A metric that does
not apply to an utterance raises `NotApplicable`; it gets no number, and the table's n shows it.
"""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
MODELS = Path(os.environ.get("SENONE_METRICS", Path.home() / ".cache" / "senone-metrics"))
Score = tuple[float, float]


class NotApplicable(Exception):
    """This metric has no value here; the message says why."""


class Child:
    """A process of its own for code that may crash or hang: `pesq` takes the interpreter down on some recordings."""

    def __init__(self) -> None:
        self.process: Any = None

    def __call__(self, function: Callable[..., float], *arguments: object, seconds: float) -> float:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.pipe.send((function, arguments))
            if not self.pipe.poll(seconds):
                raise TimeoutError
            result = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError, TimeoutError) as error:
            self.process.kill()
            self.process = None
            raise NotApplicable("too slow" if isinstance(error, TimeoutError) else "crashed") from None
        if isinstance(result, str):
            raise NotApplicable(result)
        return result


def _serve(pipe: Any) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(*arguments))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


child = Child()


def _pesq(reference: np.ndarray, decoded: np.ndarray) -> float:
    from pesq import pesq

    return float(pesq(RATE, reference, decoded, "wb"))


def pesq(reference: np.ndarray, decoded: np.ndarray, text: str) -> Score:
    """PESQ wide-band (ITU-T P.862.2), on the first 45 s: longer recordings overflow its tables."""
    if not decoded.any():
        raise NotApplicable("silence")
    cut = slice(45 * RATE)
    return child(_pesq, reference[cut], decoded[cut], seconds=60 + 20 * len(reference) / RATE), 1


def stoi(reference: np.ndarray, decoded: np.ndarray, text: str) -> Score:
    """Short-time objective intelligibility (Taal et al. 2011), 0 to 1."""
    from pystoi import stoi as score

    return float(score(reference, decoded, RATE)), 1


def sisdr(reference: np.ndarray, decoded: np.ndarray, text: str) -> Score:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), means removed."""
    reference, decoded = (x - x.mean() for x in (reference.astype(np.float64), decoded.astype(np.float64)))
    target = reference * (reference @ decoded / (reference @ reference))
    noise = decoded - target
    if noise @ noise <= 1e-10 * (target @ target):
        raise NotApplicable("more than 100 dB")
    return float(10 * np.log10(target @ target / (noise @ noise))), 1


def visqol(reference: np.ndarray, decoded: np.ndarray, text: str) -> Score:
    """ViSQOL v3 in speech mode with the lattice mapping, 1 to 5 (identity gives about 4.4 to 4.6)."""
    return float(_visqol().measure_from_arrays(reference.astype(float), decoded.astype(float), RATE).moslqo), 1


def distillmos(reference: np.ndarray, decoded: np.ndarray, text: str) -> Score:
    """DistillMOS (Stahl and Gamper 2025): opinion score estimated from the decoded wave alone, 1 to 5."""
    import torch

    with torch.no_grad():
        return float(_distillmos()(torch.from_numpy(decoded)[None])), 1


def wer(reference: np.ndarray, decoded: np.ndarray, text: str) -> Score:
    """Word errors of Moonshine tiny against the transcript, both in whisper's English normal form; weight: words."""
    import jiwer
    from asr import moonshine
    from whisper_normalizer.english import EnglishTextNormalizer

    normal = EnglishTextNormalizer()
    truth = normal(text)
    if not truth:
        raise NotApplicable("no transcript")
    count = jiwer.process_words(truth, normal(moonshine(MODELS).transcribe(decoded)))
    return float(count.substitutions + count.deletions + count.insertions), float(len(truth.split()))


def speaker(reference: np.ndarray, decoded: np.ndarray, text: str) -> Score:
    """Cosine between the ECAPA-TDNN speaker embeddings (VoxCeleb) of the reference and of the decoded wave."""
    from ecapa import ecapa

    return float(_reference_embedding(reference.tobytes()) @ ecapa(MODELS)(decoded)), 1


@lru_cache(16)
def _reference_embedding(samples: bytes) -> np.ndarray:
    """Kept, as the systems follow one another on the same utterance."""
    from ecapa import ecapa

    return ecapa(MODELS)(np.frombuffer(samples, np.float32).copy())


@cache
def _visqol():
    from visqol import VisqolApi

    api = VisqolApi()
    api.create(mode="speech")
    return api


@cache
def _distillmos():
    import sys
    import types

    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # only its command line uses it
    from distillmos import ConvTransformerSQAModel

    return ConvTransformerSQAModel().eval()


@dataclass(frozen=True)
class Metric:
    """How a metric is computed and shown. heavy: only on the first `--heavy` utterances; waveform: needs the phase."""

    title: str
    score: Callable[[np.ndarray, np.ndarray, str], Score]
    package: str
    digits: int = 3
    scale: float = 1
    heavy: bool = False
    waveform: bool = False

    @property
    def version(self) -> str:
        return f"{self.package} {version(self.package)}" if self.package else "1"


METRICS = {
    "pesq": Metric("PESQ-WB", pesq, "pesq"),
    "stoi": Metric("STOI", stoi, "pystoi"),
    "sisdr": Metric("SI-SDR dB", sisdr, "", digits=2, waveform=True),
    "visqol": Metric("ViSQOL", visqol, "visqol-python", heavy=True),
    "distillmos": Metric("DistillMOS", distillmos, "distillmos", heavy=True),
    "wer": Metric("WER %", wer, "jiwer", digits=1, scale=100, heavy=True),
    "speaker": Metric("speaker similarity", speaker, "", heavy=True),
}
