"""The ladder of classical codecs on ten clips:  python benchmarks/ladder.py --data DIR --out RUN [--metrics LIST]

What a bench says of codecs whose order is known. Means must rise with the rate of Opus and of AMR-WB, Codec2 must be
below all others, 8 kHz PCM must keep narrow-band PESQ and lose wide-band PESQ. Beside each mean stands that of ten
other clips of read speech, measured before with other tools (H). Exits with 1 where the order is wrong.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from senone.errors import SenoneError
from senone.eval import bench, corpus, tables

OPUS = ("opus:6k", "opus:9k", "opus:12k", "opus:16k", "opus:24k")
AMRWB = ("amrwb:6.6", "amrwb:8.85", "amrwb:12.65", "amrwb:15.85", "amrwb:23.85")
SPEEX = ("speex:nb1", "speex:nb3", "speex:nb5", "speex:1", "speex:3", "speex:5")
CODEC2 = ("codec2:3200", "codec2:2400", "codec2:1600", "codec2:1300", "codec2:1200", "codec2:700C")
ANCHORS = ("pcm:8k", "identity")
# PESQ-WB, PESQ-NB, STOI with the delay taken out
BEFORE = {
    "opus:6k": (1.837, 2.532, 0.860), "opus:9k": (2.805, 3.779, 0.946), "opus:12k": (3.583, 3.819, 0.955),
    "opus:16k": (4.083, 4.185, 0.974), "opus:24k": (4.393, 4.402, 0.988),
    "amrwb:6.6": (2.718, 3.356, 0.923), "amrwb:8.85": (3.163, 3.748, 0.947), "amrwb:12.65": (3.541, 4.012, 0.966),
    "amrwb:15.85": (3.713, 4.143, 0.972), "amrwb:23.85": (3.878, 4.265, 0.981),
    "speex:nb1": (1.791, 2.638, 0.860), "speex:nb3": (2.260, 3.461, 0.915), "speex:nb5": (2.531, 3.795, 0.943),
    "speex:1": (2.055, 2.577, 0.865), "speex:3": (2.803, 3.400, 0.919), "speex:5": (3.431, 3.953, 0.965),
    "codec2:3200": (1.538, 2.609, 0.844), "codec2:2400": (1.490, 2.418, 0.803), "codec2:1600": (1.452, 2.299, 0.812),
    "codec2:1300": (1.384, 2.078, 0.771), "codec2:1200": (1.401, 2.188, 0.777), "codec2:700C": (1.334, 1.879, 0.711),
    "pcm:8k": (3.456, 4.544, 0.993), "identity": (4.644, 4.549, 1.0),
}  # fmt: skip
TRUSTED = ("pesq_wb", "stoi", "visqol")  # what must rise with the rate, as far as it is measured


def broken(means: dict[str, dict[str, float | None]], metrics: list[str]) -> list[str]:
    """Sentences on what is not in order. means: by system and metric."""
    said = []

    def above(metric: str, high: str, low: str) -> None:
        a, b = means[high][metric], means[low][metric]
        if a is None or b is None or a <= b:
            said.append(f"{metric}: {high} has {a}, which is not above {low} with {b}")

    for metric in [name for name in TRUSTED if name in metrics]:
        for ladder in (OPUS, AMRWB):
            for low, high in zip(ladder, ladder[1:], strict=False):
                above(metric, high, low)
    for other in (*OPUS, *AMRWB, *SPEEX, *ANCHORS):
        for codec2 in CODEC2:
            above("pesq_wb", other, codec2)
    if not ((means["pcm:8k"]["pesq_nb"] or 0) > 4.5 and (means["pcm:8k"]["pesq_wb"] or 5) < 3.7):
        said.append(f"8 kHz PCM has {means['pcm:8k']}: narrow-band PESQ should hear nothing, wide-band PESQ much")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="recordings; the first ten are used, speakers in turn")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--metrics", default="pesq_wb,pesq_nb,stoi,estoi,si_sdr", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    metrics = list(bench.choose("quick", options.metrics))
    try:
        whole = corpus.read(options.data)
        ten = dataclasses.replace(whole, utterances=whole.utterances[:10])
        plan = bench.Plan((*OPUS, *AMRWB, *SPEEX, *CODEC2, *ANCHORS), tuple(metrics))
        run = bench.run(plan, ten, options.out, jobs=options.jobs, speed=False, command=" ".join(sys.argv))
    except SenoneError as error:
        sys.exit(f"ladder: {error}")
    tables.write(run)
    cells = {system["name"]: system["cells"] for system in run.summary["systems"]}
    means = {name: {metric: cell["value"] for metric, cell in mine.items()} for name, mine in cells.items()}
    heads = ["system", "kb/s in file", *metrics, "H: pesq_wb", "H: pesq_nb", "H: stoi"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for system in run.summary["systems"]:
        values = [system["file_kbps"], *means[system["name"]].values(), *BEFORE[system["name"]]]
        print("| " + " | ".join([system["name"], *("–" if v is None else f"{v:.3f}" for v in values)]) + " |")
    wrong = broken(means, metrics)
    print("\n".join(["", *wrong] if wrong else ["", "Everything is in order."]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
