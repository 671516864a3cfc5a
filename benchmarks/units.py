"""Write the list of recordings that units may learn from.

    python benchmarks/units.py manifest --data ../shared/data -o train.tsv

The aligned LibriSpeech utterances of `units_held_out.txt` stay out of it: two whole speakers, a woman and a man, so
that nothing of a measured voice is ever heard. 100 of theirs are measured ("test"), the rest choose layers ("dev").
"""

import argparse
import csv
import os
from pathlib import Path

from senone.data.manifest import Cut, read

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    manifest = verbs.add_parser("manifest", help="write the list of recordings to train on")
    manifest.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    manifest.add_argument("--split", default="train")
    manifest.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    cuts = heard(given.data, given.split)
    write(given.out, cuts)
    print(f"{len(cuts)} recordings, {sum(cut.seconds for cut in cuts) / 3600:.2f} h: {given.out}")


if __name__ == "__main__":
    main()
