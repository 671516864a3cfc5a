"""`make demo`: a recording through the default model at three bit rates, the files it takes, and a picture.

Usage: demo.py [FILE] [FOLDER] (default: the clip beside this file, and ./demo)
"""

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import senone
from senone import bitstream
from senone.audio import Audio
from senone.features import mel_filters, stft


def mel(audio: Audio) -> np.ndarray:
    """Log-mel in dB, (mel, frame)."""
    power = stft(audio.wave, 1024, 256)[0].abs().square()
    return 10 * (mel_filters(audio.rate, 1024, 80) @ power).clamp(min=1e-6).log10().numpy()


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("clip.flac")
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("demo")
    folder.mkdir(parents=True, exist_ok=True)
    model = senone.load("spectral-mini")
    audio = Audio.read(source).mono().resample(model.sample_rate)
    codes = model.encode(audio)
    most = codes.data.shape[1]
    print(f"{source}: {audio.seconds:.2f} s, {audio.wave.shape[1] * 2:,} bytes at 16 bits a sample")
    for levels in sorted({1, min(4, most), most}):
        kept = codes.levels(levels)
        out = model.decode(kept)[0]
        stem = folder / f"{source.stem}-{levels}"
        out.save(f"{stem}.wav")
        with bitstream.Writer(f"{stem}.sno", kept.spec, levels, entropy=True) as writer:
            writer.write(kept)
        size = Path(f"{stem}.sno").stat().st_size
        rate = replace(kept.spec, sizes=kept.spec.sizes[:levels]).bitrate / 1000
        real = size * 8 / audio.seconds / 1000
        print(f"  {levels:2d} levels  {rate:.1f} kb/s, in the file {real:.1f}  {size:7,} bytes  {stem}.wav, {stem}.sno")
    figure, axes = plt.subplots(4, 1, figsize=(12, 10), layout="constrained")
    time = np.arange(audio.wave.shape[1]) / audio.rate
    axes[0].plot(time, audio.wave[0].numpy(), linewidth=0.4)
    axes[0].set(title=f"{source.name}: waveform", xlim=(0, audio.seconds), xlabel="seconds")
    for axis, sound, title in ((axes[1], audio, "mel before"), (axes[2], out, f"mel after, {most} levels")):
        axis.imshow(mel(sound), origin="lower", aspect="auto", vmin=-60, vmax=30, extent=(0, audio.seconds, 0, 80))
        axis.set(title=title, ylabel="mel bin")
    axes[3].imshow(codes.data[0].numpy(), aspect="auto", interpolation="nearest", cmap="prism")
    axes[3].set(title=f"tokens: {codes.data.shape[2]} frames of {most}", ylabel="level", xlabel="frame")
    figure.savefig(folder / f"{source.stem}.png", dpi=110)
    print(f"  picture: {folder / source.stem}.png")


if __name__ == "__main__":
    main()
