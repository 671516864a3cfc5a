"""Other voices and other microphones:  python benchmarks/voices.py DATA OUT [--copies 3]

Copies of recordings, faster or slower, pitch and all, and through an equaliser, both at random, as FLAC, listed in
OUT/manifest.jsonl. `data=DATA,OUT` then trains on both. In hours of speech too few people speak (docs/log.md).
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import senone
from senone.data.manifest import Cut, read, write
from senone.errors import SenoneError

SPEEDS, DECIBELS = (0.85, 1.18), 6.0
BANDS = 6  # points of the equaliser's curve, evenly in the logarithm of frequency
LOWEST = 80.0  # Hz, the first of them


def main() -> None:
    """Read the arguments, write the copies and their manifest."""
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("data", help="folder or manifest of speech")
    say.add_argument("out", type=Path, help="folder to write")
    say.add_argument("--copies", type=int, default=3, help="of each recording")
    options = say.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        rng, cuts = np.random.default_rng(5), []
        for n, cut in enumerate(read(options.data)):
            audio = senone.Audio.read(cut.path, start=cut.start, seconds=cut.seconds).mono()
            for k in range(options.copies):
                path, other = options.out / f"{n}-{k}.flac", varied(audio, rng)
                other.save(path)
                cuts.append(Cut(path.stem, str(path), other.seconds, speaker=f"{cut.speaker or n}-{k}", split="train"))
        write(options.out / "manifest.jsonl", cuts)
    except (SenoneError, OSError) as error:
        raise SystemExit(str(error)) from None


def varied(audio: senone.Audio, rng: np.random.Generator) -> senone.Audio:
    """The same sound at another speed and through another microphone, as loud at its peak as before."""
    speed, gains = rng.uniform(*SPEEDS), rng.uniform(-DECIBELS, DECIBELS, BANDS)
    other = senone.Audio(audio.wave, round(audio.rate * speed)).resample(audio.rate)
    spectrum = torch.fft.rfft(other.wave)
    hertz = np.fft.rfftfreq(other.wave.shape[1], 1 / audio.rate)
    points = np.geomspace(LOWEST, audio.rate / 2, BANDS)
    curve = 10 ** (np.interp(np.log(hertz.clip(LOWEST)), np.log(points), gains) / 20)
    wave = torch.fft.irfft(spectrum * torch.from_numpy(curve).float(), n=other.wave.shape[1])
    return senone.Audio(wave * (audio.wave.abs().max() / wave.abs().max().clamp(min=1e-9)), audio.rate)


if __name__ == "__main__":
    main()
