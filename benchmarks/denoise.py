"""How much noise a codec's denoise flag takes away:  python benchmarks/denoise.py MODEL[@LEVELS] ... [gtcrn] [dtln]

Every utterance is mixed with one recording of the noise fold at the wanted ratio (powers over the whole utterance;
noise from a random place, repeated as needed; the same mixtures for every system and every run). Against the clean
speech are then measured: the mixture, what each model makes of it with the flag off and on, what it makes of the clean
speech (its own ceiling), and what denoisers make of the mixture, alone and before the codec.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile

from senone.errors import SenoneError
from senone.eval import corpus, stats
from senone.eval.metrics import METRICS, RATE, Item, Metric, measure
from senone.eval.tables import cell

Denoiser = Callable[[np.ndarray], np.ndarray]
WEIGHTS = Path(os.environ.get("SENONE_WEIGHTS", Path(__file__).parents[2] / "shared" / "weights"))


def mixtures(
    utterances: list[corpus.Utterance], noise: Path, fold: str, snr: float
) -> Iterator[tuple[corpus.Utterance, np.ndarray, np.ndarray]]:
    """(utterance, clean, noisy); both scaled down together where the sum would clip."""
    with open(noise / "manifest.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    files = [noise / row["path"] for row in rows if row["split"] == fold]
    if not files:
        raise SenoneError(f"{noise} has no noise in the fold '{fold}'")
    draw = np.random.default_rng(0)
    order = draw.permutation(len(files))
    for number, utterance in enumerate(utterances):
        clean = utterance.read().resample(RATE).wave[0].numpy()
        sound, rate = soundfile.read(files[order[number % len(files)]], dtype="float32")
        if rate != RATE or not sound.any():
            raise SenoneError(f"{files[order[number % len(files)]]} is silent or not at {RATE} Hz")
        sound = np.resize(np.roll(sound, -draw.integers(len(sound))), len(clean))
        power = np.square(clean).mean() / max(np.square(sound).mean(), 1e-12)
        noisy = clean + sound * np.float32(np.sqrt(power / 10 ** (snr / 10)))
        scale = np.float32(min(1, 0.99 / np.abs(noisy).max()))
        yield utterance, clean * scale, noisy * scale


def systems(names: list[str]) -> dict[str, tuple[Denoiser, bool]]:
    """What is measured: title -> (function, whether it gets the mixture and not the clean speech)."""
    out: dict[str, tuple[Denoiser, bool]] = {"mixture": (lambda wave: wave, True)}
    denoisers = {name: DENOISERS[name]() for name in names if name in DENOISERS}
    out |= {name: (run, True) for name, run in denoisers.items()}
    for name in names:
        if name not in DENOISERS:
            model = _model(name)
            out[f"{name}, denoise off"] = (lambda wave, model=model: model(wave, False), True)
            out[f"{name}, denoise on"] = (lambda wave, model=model: model(wave, True), True)
            out[f"{name}, clean speech, off"] = (lambda wave, model=model: model(wave, False), False)
            out[f"{name}, clean speech, on"] = (lambda wave, model=model: model(wave, True), False)
            for other, run in denoisers.items():
                out[f"{other}, then {name}"] = (lambda wave, model=model, run=run: model(run(wave), False), True)
    return out


def _model(name: str) -> Callable[[np.ndarray, bool], np.ndarray]:
    import torch

    import senone
    from senone.audio import Audio

    path, _, levels = name.rpartition("@")
    codec = senone.load(path or name)
    count = codec.levels_for(int(levels) if path else None)

    def run(wave: np.ndarray, denoise: bool) -> np.ndarray:
        audio = Audio(torch.from_numpy(wave)[None], RATE)
        return codec.decode(codec.encode(audio, levels=count, denoise=denoise))[0].resample(RATE).wave[0].numpy()

    return run


def gtcrn() -> Denoiser:
    """GTCRN (48 k parameters), frame by frame on an STFT of 512/256 samples with square-root Hann windows."""
    session = _session("gtcrn/gtcrn_stream.onnx")
    window = np.sqrt(np.hanning(513)[:512]).astype(np.float32)
    shapes = {"conv_cache": (2, 1, 16, 16, 33), "tra_cache": (2, 3, 1, 1, 16), "inter_cache": (2, 1, 33, 16)}

    def run(wave: np.ndarray) -> np.ndarray:
        padded = np.pad(wave, (256, 512 + -len(wave) % 256))
        state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        out = np.zeros(len(padded), np.float32)
        for start in range(0, len(padded) - 511, 256):
            spectrum = np.fft.rfft(padded[start : start + 512] * window)
            mix = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)[None, :, None]
            enhanced, *caches = session.run(None, {"mix": mix} | state)
            state = dict(zip(shapes, caches, strict=True))
            out[start : start + 512] += np.fft.irfft(enhanced[0, :, 0, 0] + 1j * enhanced[0, :, 0, 1], 512) * window
        return out[256 : 256 + len(wave)]

    return run


def dtln() -> Denoiser:
    """DTLN (1 M parameters): a mask on spectra, then a net on the learned domain; blocks of 512, shift 128."""
    first, second = _session("dtln/model_1.onnx"), _session("dtln/model_2.onnx")

    def run(wave: np.ndarray) -> np.ndarray:
        padded = np.pad(wave, (384, 512 + -len(wave) % 128))
        one = two = np.zeros((1, 2, 128, 2), np.float32)
        out = np.zeros(len(padded), np.float32)
        for start in range(0, len(padded) - 511, 128):
            spectrum = np.fft.rfft(padded[start : start + 512])
            mask, one = first.run(None, {"input_2": np.abs(spectrum).astype(np.float32)[None, None], "input_3": one})
            block = np.fft.irfft(spectrum * mask[0, 0], 512).astype(np.float32)
            block, two = second.run(None, {"input_4": block[None, None], "input_5": two})
            out[start : start + 512] += block[0, 0]
        return out[384 : 384 + len(wave)]

    return run


DENOISERS = {"gtcrn": gtcrn, "dtln": dtln}


def _session(file: str) -> Any:
    import onnxruntime

    if not (WEIGHTS / file).exists():
        raise SenoneError(f"{WEIGHTS / file} is missing: SENONE_WEIGHTS must name a folder with it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(WEIGHTS / file), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", metavar="SYSTEM")
    parser.add_argument("--data", type=Path, required=True, help="folder of clean speech with manifest.tsv")
    parser.add_argument("--noise", type=Path, required=True, help="folder of noise with manifest.tsv")
    parser.add_argument("--fold", default="dev", help="fold of the noise: dev to tune, test to report")
    parser.add_argument("--snr", type=float, default=5.0, help="dB (default %(default)s)")
    parser.add_argument("--metrics", default="si_sdr,stoi")
    parser.add_argument("--limit", type=int, help="only the first N utterances, all speakers in turn")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    try:
        table = run(options, [METRICS.get(name)() for name in options.metrics.split(",")])
    except (SenoneError, OSError) as error:
        sys.exit(f"denoise: {error}")
    if options.out:
        options.out.write_text(table)
    print(table)


def run(options: argparse.Namespace, metrics: list[Metric]) -> str:
    utterances = corpus.read(options.data).utterances[: options.limit]
    runs = systems(options.systems)
    shape = len(utterances), len(metrics)
    values, weights = ({title: np.zeros(shape) for title in runs} for _ in range(2))
    for n, (utterance, clean, noisy) in enumerate(mixtures(utterances, options.noise, options.fold, options.snr)):
        for title, (system, mixed) in runs.items():
            decoded = system(noisy if mixed else clean)
            for k, metric in enumerate(metrics):
                score = measure(metric, Item(clean, decoded.astype(np.float32), utterance.text))
                if score.value is not None:
                    values[title][n, k], weights[title][n, k] = score.value, score.weight
    heads = [f"{options.snr:g} dB, fold {options.fold}"]
    heads += [head for metric in metrics for head in (metric.column.title, "minus mixture")]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    unit = stats.units([u.speaker for u in utterances], [u.id for u in utterances])[1]
    for title in runs:
        alone = cells(values[title], weights[title], unit, metrics)
        both = weights[title] * (weights["mixture"] > 0)
        change = cells(values[title] - values["mixture"], both, unit, metrics, sign="+")
        pairs = zip(alone, change if title != "mixture" else [""] * len(metrics), strict=True)
        lines.append("| " + " | ".join([title, *(text for pair in pairs for text in pair)]) + " |")
    return "\n".join([*lines, "", f"{len(utterances)} utterances; in brackets: 95 % bootstrap interval."]) + "\n"


def cells(
    values: np.ndarray, weights: np.ndarray, unit: np.ndarray, metrics: list[Metric], sign: str = ""
) -> list[str]:
    """Of one system: for each metric sum(values) / sum(weights) with its interval."""
    bounds = stats.intervals(stats.totals(unit, values * (weights > 0)), stats.totals(unit, weights))
    out = []
    for k, metric in enumerate(metrics):
        n, total = int((weights[:, k] > 0).sum()), weights[:, k].sum()
        score = (values[:, k] * (weights[:, k] > 0)).sum() / total if total else None
        found = {"value": score, "low": bounds[0, k], "high": bounds[1, k], "n": n, "of": len(values)}
        out.append(cell(found, {"digits": metric.column.digits, "scale": metric.column.scale}, sign))
    return out


if __name__ == "__main__":
    main()
