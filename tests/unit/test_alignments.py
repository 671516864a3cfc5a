"""Alignments in five forms, all of them the same two phones and a pause."""

import gzip

import pytest

from senone.eval.alignments import read
from senone.eval.units import EvalError

WANT = {"a-1": [(0.0, 0.14, "sil"), (0.14, 0.29, "DH"), (0.29, 0.5, "AH0")]}
TSV = (
    "utt\ttier\tstart\tend\tlabel\na-1\twords\t0.14\t0.5\tthe\n"
    "a-1\tphones\t0\t0.14\tsp\na-1\tphones\t0.14\t0.29\tDH\na-1\tphones\t0.29\t0.5\tAH0\n"
)
GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "the"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.14
            text = ""
        intervals [2]:
            xmin = 0.14
            xmax = 0.29
            text = "DH"
        intervals [3]:
            xmin = 0.29
            xmax = 0.5
            text = "AH0"
"""


def test_every_form_is_read_alike(tmp_path):
    (tmp_path / "x.tsv").write_text(TSV)
    with gzip.open(tmp_path / "x.tsv.gz", "wt") as file:
        file.write(TSV)
    (tmp_path / "x.ctm").write_text(";; a note\na-1 1 0 0.14 SIL\na-1 1 0.14 0.15 DH 0.9\na-1 1 0.29 0.21 AH0\n")
    for name, text in (
        ("grids/deep/a-1.TextGrid", GRID),
        ("labs/lab/a-1.lab", "#\n0.14 125 pau\n0.29 125 DH\n0.5 125 AH0\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    for name in ("x.tsv", "x.tsv.gz", "x.ctm", "grids", "labs"):
        assert read(tmp_path / name) == WANT, name


def test_what_cannot_be_read_is_named(tmp_path):
    for name, text, says in (
        ("a.tsv", "utt\tstart\tend\n", "a.tsv has no column 'label'"),
        ("b.tsv", TSV.replace("0.29\tDH", "soon\tDH"), "b.tsv, line 4: times must be seconds, got '0.14' and 'soon'"),
        ("c.tsv", TSV.replace("phones", "letters"), "c.tsv holds no phones"),
        ("d.ctm", "a-1 1 0.5\n", "d.ctm, line 1: times must be seconds"),
        ("e.txt", TSV, "e.txt is no alignment: give a .tsv"),
        ("f.tsv.gz", TSV, "cannot read .*f.tsv.gz"),
        ("g/x.TextGrid", GRID.replace('"phones"', '"signs"'), "x.TextGrid has 0 tiers of the name phones"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        with pytest.raises(EvalError, match=says):
            read(path if path.parent == tmp_path else path.parent)
    with pytest.raises(EvalError, match="gone.tsv: No such file"):
        read(tmp_path / "gone.tsv")
    with pytest.raises(EvalError, match="is no alignment"):
        read(tmp_path / "gone")
