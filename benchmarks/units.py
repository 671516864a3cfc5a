"""What `senone eval units` leaves to do: who is kept out of training, and which layer of an encoder has the best units.

    python benchmarks/units.py manifest --data ../shared/data -o train.tsv          # what training may hear
    python benchmarks/units.py sweep ENCODER_DIR --layers 2,3,4 --clusters 100 --train train.tsv --data ../shared/data

Then the table, on two sets that no training hears:

    senone kmeans train.tsv --encoder mfcc --clusters 100 --hours 1 -o mfcc-100
    L=../shared/data/librispeech_train_clean_100_part
    senone eval units mfcc-100 UNITS_DIR --data $L --phones $L/alignments.tsv.gz \\
        --only benchmarks/units_held_out.txt --use test
    senone eval units mfcc-100 UNITS_DIR --data festvox-ru --phones festvox-ru --only sixth.txt

The first: 100 utterances of two speakers, a woman and a man, with forced alignments; all their utterances stay out
(`units_held_out.txt`), and layers are chosen on the others of them ("dev"). The second: every sixth of the 620
utterances of Debian's festvox-ru (one man, another language), unpacked and listed by
`apt-get download festvox-ru && dpkg-deb -x festvox-ru*.deb festvox-ru`, then
`find festvox-ru -name '*.lab' | sort | awk 'NR % 6 == 1' | sed 's,.*/,,; s,.lab$,,' > sixth.txt`.

PNMI is also given with the phones one frame early and late: it falls where the alignments are in time. Those of
festvox-ru are as they come, some 7 ms early: at 10 ms a frame, late is no worse.
"""

import argparse
import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from senone import Audio, load
from senone.data.manifest import Cut, read
from senone.eval import alignments, corpus
from senone.eval.unitbench import Spoken, measure
from senone.models.units import MFCC, Units
from senone.quantize.kmeans import fit

HELD_OUT = Path(__file__).with_name("units_held_out.txt")
LIBRISPEECH = "librispeech_train_clean_100_part"
FOLDERS = (LIBRISPEECH, "kathleen", "ljspeech_part", "speechocean762")


def held_out() -> dict[str, str]:
    """What each held-out utterance is for: {"5652-39938-0000": "test", ...}; the rest of their speakers' are "dev"."""
    lines = (line.split() for line in HELD_OUT.read_text().splitlines() if line and not line.startswith("#"))
    return {utterance: use for utterance, use in lines}


def heard(data: Path, split: str = "train") -> list[Cut]:
    """The recordings of `split` that training may use: those of FOLDERS but the speakers that are held out."""
    speakers = {utterance.split("-")[0] for utterance in held_out()}
    cuts = [cut for folder in FOLDERS for cut in read(data / folder, split)]
    return [cut for cut in cuts if LIBRISPEECH not in cut.path or Path(cut.path).name.split("-")[0] not in speakers]


def write(path: Path, cuts: list[Cut]) -> None:
    """Write the cuts as a TSV with absolute paths."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        rows.writerow(["path", "speaker", "seconds", "text", "split"])
        for cut in cuts:
            rows.writerow([os.path.abspath(cut.path), cut.speaker, cut.seconds, cut.text or "", cut.split])
    os.replace(part, path)


def librispeech(data: Path, use: str) -> list[Spoken]:
    """The held-out utterances for `use`, "test" or "dev", with their alignments."""
    phones = alignments.read(data / LIBRISPEECH / "alignments.tsv.gz")
    names = {utterance for utterance, what in held_out().items() if what == use}
    found = {Path(one.path).stem: one for one in corpus.read(data / LIBRISPEECH).utterances}
    return [Spoken(found[name], phones[name]) for name in sorted(names & phones.keys())]


def fitted(source: str, clusters: list[int], train: Path, hours: float) -> Iterator[Units]:
    """Units of `mfcc` or of `ENCODER_DIR@LAYER`, of each size, all from the same `hours` of the training list."""
    folder, _, layer = source.rpartition("@")
    encoder, layer = (MFCC(), None) if source == "mfcc" else (load(folder), int(layer))
    raw = Units.of(encoder, 2, layer)
    seen = [raw.analyse(wave[None])[0][0].T for wave in sample(train, hours)]
    for size in clusters:
        start = time.perf_counter()
        centroids, _, frames, steps = fit(seen, size)
        took = time.perf_counter() - start
        print(f"  {source}: {size} clusters of {frames} frames, {steps} batches in {took:.0f} s", flush=True)
        yield Units.of(encoder, centroids, layer)


def sample(train: Path, hours: float) -> Iterator[torch.Tensor]:
    """Waves, (1, samples), of `hours` of the list in a fixed random order."""
    cuts, left = read(train), hours * 3600
    for index in np.random.default_rng(0).permutation(len(cuts)):
        if left <= 0:
            return
        left -= cuts[index].seconds
        yield Audio.read(cuts[index].path).mono().resample(16000).wave


def row(name: str, units: Units, spoken: list[Spoken]) -> str:
    """A line of the table."""
    found = measure(units, spoken, disturbed=0)
    q, ms = found.quality, 1000 * units.hop / units.sample_rate
    assert q is not None
    errors = (None, None) if found.abx is None else (found.abx.within, found.abx.across)
    within, across = ("-" if error is None else f"{100 * error:.2f}" for error in errors)
    return (
        f"| {name} | {found.size} | {found.used} | {q.pnmi:.3f} | {q.bias:.3f} | {q.phone_purity:.3f} | "
        f"{q.cluster_purity:.3f} | {q.perplexity:.0f} | {q.unit_run * ms:.0f} | {q.phone_run * ms:.0f} | "
        f"{q.frames} | {found.early:.3f} | {found.late:.3f} | {within} | {across} |"
    )


COLUMNS = (
    "units, K, used, PNMI, bias, phone purity, cluster purity, perplexity, unit ms, phone ms, frames, PNMI early, "
    "late, ABX within %, across %"
).split(", ")
HEAD = f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    manifest, sweep = (verbs.add_parser(name) for name in ("manifest", "sweep"))
    manifest.add_argument("--split", default="train")
    manifest.add_argument("-o", "--out", type=Path, required=True)
    sweep.add_argument("encoder", help="a directory, or mfcc")
    sweep.add_argument("--layers", help="such as 2,3,4; of mfcc none")
    sweep.add_argument("--clusters", default="100", help="such as 100,500")
    sweep.add_argument("--train", type=Path, required=True, help="list to fit k-means on, as `manifest` writes it")
    sweep.add_argument("--hours", type=float, default=1.0, help="how much of it")
    for verb in (manifest, sweep):
        verb.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    given = parser.parse_args()
    if given.verb == "manifest":
        cuts = heard(given.data, given.split)
        write(given.out, cuts)
        print(f"{len(cuts)} recordings, {sum(cut.seconds for cut in cuts) / 3600:.2f} h: {given.out}")
        return
    spoken, clusters = librispeech(given.data, "dev"), [int(size) for size in given.clusters.split(",")]
    sources = [f"{given.encoder}@{layer}" for layer in given.layers.split(",")] if given.layers else [given.encoder]
    lines = [HEAD]
    for name in sources:
        for units in fitted(name, clusters, given.train, given.hours):
            lines.append(row(name, units, spoken))
            print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
