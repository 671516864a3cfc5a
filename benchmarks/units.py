"""How well do units follow phones: PNMI, purities and run lengths of unit tokenizers, beside MFCC k-means?

    python benchmarks/units.py manifest --data ../shared/data -o train.tsv         # what training may hear
    python benchmarks/units.py measure UNITS_DIR mfcc:100 --train train.tsv \\
        --data ../shared/data --festvox festvox-ru                                 # the table
    python benchmarks/units.py sweep ENCODER_DIR --layers 2,3,4 --clusters 100 --train train.tsv \\
        --data ../shared/data                                                      # which layer?

Measured on two sets that no training hears. "librispeech": 100 utterances of two speakers, a woman and a man, with
forced alignments; all their utterances stay out (`units_held_out.txt`), and layers are chosen on the others of them
("dev"). "festvox-ru": every sixth of the 620 utterances of Debian's package of that name (one man, another language),
unpacked with `apt-get download festvox-ru && dpkg-deb -x festvox-ru*.deb festvox-ru`.

A system is a tokenizer that `senone.load` knows, or is fitted here on the first hours of a shuffled training list:
`mfcc:K` or `ENCODER_DIR@LAYER:K`. PNMI is also given with the phones one frame early and late: it falls where the
alignments are in time. Those of festvox-ru are as they come, some 7 ms early: at 10 ms a frame, late is no worse.
"""

import argparse
import csv
import gzip
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from senone import Audio, AudioTokenizer, load
from senone.data.manifest import Cut, read
from senone.eval.units import Interval, Quality, phones_at, quality
from senone.models.units import MFCC, Units
from senone.quantize.kmeans import fit

HELD_OUT = Path(__file__).with_name("units_held_out.txt")
LIBRISPEECH = "librispeech_train_clean_100_part"
FOLDERS = (LIBRISPEECH, "kathleen", "ljspeech_part", "speechocean762")
PAUSES = {"sp": "sil", "pau": "sil"}  # one silence, whatever the aligner called it


@dataclass(frozen=True)
class Spoken:
    """A recording and when its phones are said."""

    path: Path
    phones: list[Interval]


# what may be heard, and what is measured


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
    phones: dict[str, list[Interval]] = {utterance: [] for utterance, what in held_out().items() if what == use}
    with gzip.open(data / LIBRISPEECH / "alignments.tsv.gz", "rt") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["utt"] in phones and row["tier"] == "phones":
                phones[row["utt"]].append((float(row["start"]), float(row["end"]), _pause(row["label"])))
    return [Spoken(data / LIBRISPEECH / "audio" / f"{name}.opus", said) for name, said in sorted(phones.items())]


def festvox(folder: Path) -> list[Spoken]:
    """Every sixth utterance of festvox-ru, wherever below `folder` its lab/ and wav/ lie."""
    found = []
    for lab in sorted(folder.rglob("*.lab"))[::6]:
        ends = [line.split() for line in lab.read_text().split("#", 1)[1].splitlines() if line.strip()]
        starts = [0.0, *(float(end) for end, *_ in ends)]
        phones = [(start, float(end), _pause(label)) for start, (end, _, label) in zip(starts, ends, strict=False)]
        found.append(Spoken(lab.parent.parent / "wav" / f"{lab.stem}.wav", phones))
    if not found:
        raise SystemExit(f"no *.lab below {folder}")
    return found


def _pause(label: str) -> str:
    return PAUSES.get(label, label)


# systems


def system(name: str, train: Path | None, hours: float) -> AudioTokenizer:
    """The tokenizer of that name, or features by name, clustered first."""
    source, _, clusters = name.rpartition(":")
    if source != "mfcc" and "@" not in source:
        return load(name)
    if train is None:
        raise SystemExit(f"{name} is fitted here: give --train")
    return next(fitted(source, [int(clusters)], train, hours))


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


# measuring


def measure(units: AudioTokenizer, spoken: list[Spoken]) -> tuple[Quality, float, float]:
    """The quality of its units, and PNMI with the phones a frame early and late."""
    found = [units.encode(Audio.read(item.path)).data[0, 0].tolist() for item in spoken]
    step = units.hop / units.sample_rate

    def shifted(by: float) -> Quality:
        moved = ([(a + by, b + by, label) for a, b, label in item.phones] for item in spoken)
        clock = (units.hop, units.sample_rate)
        return quality((phones_at(phones, len(z), *clock), z) for phones, z in zip(moved, found, strict=True))

    return shifted(0), shifted(-step).pnmi, shifted(step).pnmi


def row(name: str, units: AudioTokenizer, where: str, spoken: list[Spoken]) -> str:
    """A line of the table."""
    q, early, late = measure(units, spoken)
    ms = 1000 * units.hop / units.sample_rate
    return (
        f"| {name} | {where} | {units.quantizer.sizes[0]} | {q.units} | {q.pnmi:.3f} | {q.bias:.3f} | "
        f"{q.phone_purity:.3f} | {q.cluster_purity:.3f} | {q.perplexity:.0f} | {q.unit_run * ms:.0f} | "
        f"{q.phone_run * ms:.0f} | {q.phones} | {q.frames} | {early:.3f} | {late:.3f} |"
    )


COLUMNS = (
    "units, set, K, used, PNMI, bias, phone purity, cluster purity, perplexity, unit ms, phone ms, phones, frames, "
    "PNMI early, late"
).split(", ")
HEAD = f"| {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * (len(COLUMNS) - 2)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    manifest, table, sweep = (verbs.add_parser(name) for name in ("manifest", "measure", "sweep"))
    manifest.add_argument("--split", default="train")
    manifest.add_argument("-o", "--out", type=Path, required=True)
    table.add_argument("systems", nargs="+", metavar="SYSTEM")
    table.add_argument("--use", choices=("test", "dev"), default="test", help="which held-out LibriSpeech utterances")
    sweep.add_argument("encoder")
    sweep.add_argument("--layers", required=True, help="such as 2,3,4")
    sweep.add_argument("--clusters", default="100", help="such as 100,500")
    for verb in (manifest, table, sweep):
        verb.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    table.add_argument("--festvox", type=Path, help="folder with festvox-ru")
    for verb in (table, sweep):
        verb.add_argument("--train", type=Path, help="list to fit k-means on, as `manifest` writes it")
        verb.add_argument("--hours", type=float, default=1.0, help="how much of it")
    given = parser.parse_args()
    if given.verb == "manifest":
        cuts = heard(given.data, given.split)
        write(given.out, cuts)
        print(f"{len(cuts)} recordings, {sum(cut.seconds for cut in cuts) / 3600:.2f} h: {given.out}")
        return
    use = given.use if given.verb == "measure" else "dev"
    sets = {f"librispeech {use}": librispeech(given.data, use)}
    if given.verb == "measure" and given.festvox:
        sets["festvox-ru"] = festvox(given.festvox)
    if given.verb == "sweep" and given.train is None:
        parser.error("sweep needs --train")
    if given.verb == "measure":
        systems = ((name, system(name, given.train, given.hours)) for name in given.systems)
    else:
        clusters = [int(size) for size in given.clusters.split(",")]
        sources = [f"{given.encoder}@{layer}" for layer in given.layers.split(",")]
        systems = ((name, units) for name in sources for units in fitted(name, clusters, given.train, given.hours))
    lines = [HEAD]
    for name, units in systems:
        for where, spoken in sets.items():
            lines.append(row(name, units, where, spoken))
            print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
