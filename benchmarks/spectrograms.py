"""Look at a system's best, median and worst clip:  python benchmarks/spectrograms.py RUN SYSTEM --data DIR -o out.png

RUN: a folder that codec_quality.py wrote, with this system in it. One row per clip, chosen by --metric (PESQ-WB): mel
spectrogram of the reference, of what was decoded, and decoded minus reference, in dB.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from codec_quality import Row, read_rows
from metrics import METRICS, RATE

HOP, FLOOR = 160, -80


def chosen(rows: list[Row]) -> dict[str, Row]:
    """Best, median and worst of one system and metric."""
    order = sorted((row for row in rows if row.value is not None), key=lambda row: -(row.value or 0))
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]} if order else {}


def mel(wave: np.ndarray) -> np.ndarray:
    """(80, frame) in dB: 32 ms windows every 10 ms."""
    spectrum = torch.stft(torch.from_numpy(wave), 512, HOP, window=torch.hann_window(512), return_complex=True)
    edges = 700 * (10 ** (torch.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), 82) / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, 257)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return (20 * (torch.minimum(rise, fall).clamp(min=0) @ spectrum.abs() + 1e-5).log10()).numpy()


def draw(rows: dict[str, Row], run: Path, data: Path, title: str, out: Path) -> None:
    """Write the picture, under a temporary name first."""
    figure, axes = plt.subplots(len(rows), 3, figsize=(15, 3 * len(rows)), squeeze=False, layout="constrained")
    for line, (place, row) in zip(axes, rows.items(), strict=True):
        reference, _ = soundfile.read(data / row.utterance, dtype="float32")
        decoded, _ = soundfile.read(
            run / "audio" / row.fingerprint / f"{Path(row.utterance).stem}.flac", dtype="float32"
        )
        common = min(len(reference), len(decoded))
        a, b = mel(reference[:common]), mel(decoded[:common])
        top, extent = a.max(), (0.0, common / RATE, 0.0, 80.0)
        heads = (f"{place}: {Path(row.utterance).stem}", f"{row.system}: {METRICS[row.metric].title} {row.value:.2f}")
        for axis, image, head in zip(line, (a, b, np.clip(b - a, -30, 30)), (*heads, "difference"), strict=True):
            levels = {"vmin": -30, "vmax": 30, "cmap": "RdBu_r"} if head == "difference" else {
                "vmin": top + FLOOR, "vmax": top, "cmap": "magma"}  # fmt: skip
            drawn = axis.imshow(image, origin="lower", aspect="auto", extent=extent, **levels)
            axis.set_title(head, fontsize=9)
            axis.set_xlabel("seconds", fontsize=8)
            figure.colorbar(drawn, ax=axis, label="dB")
        line[0].set_ylabel("mel band")
    figure.suptitle(title)
    part = out.with_name(f".{out.name}.part")
    figure.savefig(part, dpi=100, format="png")
    part.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("system")
    parser.add_argument("--data", type=Path, required=True, help="the folder that was measured")
    parser.add_argument("--metric", default="pesq", choices=[m for m in METRICS if m != "wer"])
    parser.add_argument("-o", "--out", type=Path, default=Path("spectrograms.png"))
    options = parser.parse_args()
    rows = [row for row in read_rows(options.run / "scores.jsonl").values() if row.metric == options.metric]
    mine = [row for row in rows if row.system == options.system]
    last = mine[-1].fingerprint if mine else ""  # the model may have been trained on since its first measurement
    clips = chosen([row for row in mine if row.fingerprint == last])
    if not clips:
        known = ", ".join(sorted({row.system for row in rows})) or "none"
        sys.exit(f"spectrograms: {options.run} has no {options.metric} of '{options.system}'; systems there: {known}")
    draw(clips, options.run, options.data, f"{options.system}, by {METRICS[options.metric].title}", options.out)
    print(options.out)


if __name__ == "__main__":
    main()
