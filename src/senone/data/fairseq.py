"""fairseq's files of features and labels (examples/hubert/simple_kmeans): .npy with .len, .km with .tsv, dict.km.txt.

Its frames are Kaldi's: frame j is the window of 400 samples from j * hop on. Ours are as many as hops, each around the
middle of its hop. So labels move to the nearest frame as they come and go: by one at 100 a second, by none at 50.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from senone.data.labels import Labels, LabelsError, Provenance, Writer
from senone.data.manifest import Cut, DataError

RATE, WINDOW, HOPS = 16000, 400, (160, 320)


def read_labels(km: str | Path, tsv: str | Path, out: str | Path) -> Labels:
    """Turn labels (a line of integers for each recording of `tsv`) into ours, at `out`.

    Their rate follows from the lengths, their number of clusters from dict.km.txt beside them, or else the largest.
    Raises LabelsError where the two files do not fit.
    """
    try:
        root, *files = Path(tsv).read_text().splitlines()
        counts = [(name, int(samples)) for name, samples in (line.split("\t") for line in files)]
        labels = [np.array(line.split(), np.int64) for line in Path(km).read_text().splitlines()]
        table = Path(km).with_name("dict.km.txt")
        clusters = len(table.read_text().splitlines()) if table.exists() else 1 + max(int(row.max()) for row in labels)
    except OSError as error:
        raise LabelsError(f"cannot read {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise LabelsError(f"{km} and {tsv} are not fairseq's labels: {error}") from None
    if len(labels) != len(counts):
        raise LabelsError(f"{km} has {len(labels)} lines for {len(counts)} recordings in {tsv}")
    pairs = list(zip(labels, counts, strict=True))
    fits = [hop for hop in HOPS if all(len(row) == _frames(samples, hop) for row, (_, samples) in pairs)]
    if not fits:
        raise LabelsError(f"{km} is neither at 100 nor at 50 labels a second of the recordings in {tsv}")
    hop = fits[0]
    origin = hashlib.sha256(Path(km).read_bytes()).hexdigest()[:16]
    provenance = Provenance("fairseq", None, clusters, "unknown", f"{RATE // hop}/1", "unknown", origin)
    with Writer(out, provenance) as writer:
        for row, (name, samples) in pairs:
            cut = Cut(os.path.splitext(name)[0], os.path.join(root, name), samples / RATE)
            writer.write(cut, _moved(row, -(-samples // hop), -_shift(hop)))
    return Labels.load(out)


def write_labels(labels: Labels, folder: str | Path, split: str) -> None:
    """Write {split}.km, {split}.tsv and dict.km.txt. Raises LabelsError for labels of parts of files."""
    hop = RATE / labels.frame_rate
    if hop not in HOPS:
        raise LabelsError(f"fairseq takes 100 or 50 labels a second, not {float(labels.frame_rate):g}")
    rows, files = [], ["/"]
    for number, path in enumerate(labels.keys):
        try:
            info = soundfile.info(path)
        except (soundfile.SoundFileError, OSError) as error:
            raise LabelsError(f"{path} is not audio that can be read ({type(error).__name__})") from None
        if info.samplerate != RATE:
            raise LabelsError(f"fairseq takes files at {RATE} Hz: {path} is at {info.samplerate}")
        row = _moved(labels[number], _frames(info.frames, int(hop)), _shift(int(hop)))
        rows.append(" ".join(map(str, row.tolist())))
        files.append(f"{os.path.relpath(path, '/')}\t{info.frames}")
    table = [f"{unit} 1" for unit in range(labels.clusters)]
    for name, lines in ((f"{split}.km", rows), (f"{split}.tsv", files), ("dict.km.txt", table)):
        part = Path(folder, f".{name}.part")
        try:
            part.write_text("".join(f"{line}\n" for line in lines))
            os.replace(part, Path(folder, name))
        except OSError as error:
            raise LabelsError(f"cannot write {Path(folder, name)}: {error.strerror}") from None


def read_features(stem: str | Path) -> Iterator[Float[Tensor, "frame dim"]]:
    """The features of {stem}.npy by recording, for `kmeans.fit`: mapped, not loaded. Raises DataError."""
    try:
        values = np.load(f"{stem}.npy", mmap_mode="r")
        ends = np.cumsum([0, *map(int, Path(f"{stem}.len").read_text().split())])
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {stem}.npy and .len: {error}") from None
    if ends[-1] != len(values):
        raise DataError(f"{stem}.len says {ends[-1]} frames, {stem}.npy has {len(values)}")
    for first, end in zip(ends, ends[1:], strict=False):
        yield torch.from_numpy(np.array(values[first:end], np.float32))


def write_features(stem: str | Path, features: Iterable[Float[Tensor, "frame dim"]]) -> None:
    """Write {stem}.npy and {stem}.len, recording by recording. Raises DataError."""
    counts, width, part = [], 0, Path(f"{stem}.npy.part")

    def head() -> None:  # numpy leaves room for the number of rows to grow
        facts = {"descr": "<f4", "fortran_order": False, "shape": (sum(counts), width)}
        np.lib.format.write_array_header_1_0(file, facts)

    try:
        with open(part, "wb") as file:
            for piece in features:
                if not counts:
                    width = piece.shape[1]
                    head()
                counts.append(len(piece))
                file.write(piece.cpu().numpy().astype("<f4").tobytes())
            file.seek(0)
            head()
        os.replace(part, f"{stem}.npy")
        Path(f"{stem}.len").write_text("".join(f"{count}\n" for count in counts))
    except OSError as error:
        raise DataError(f"cannot write {stem}.npy: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def _frames(samples: int, hop: int) -> int:
    return (samples - WINDOW) // hop + 1 if samples >= WINDOW else 0


def _shift(hop: int) -> int:
    """By how many of our frames the middle of theirs lies later."""
    return round((WINDOW - hop) / 2 / hop)


def _moved(row: Integer[np.ndarray, "frame"], frames: int, by: int) -> Integer[np.ndarray, "frame"]:
    """`frames` labels, label i that of frame i + by, or the nearest there is."""
    if not len(row):
        raise LabelsError("a recording without labels cannot be aligned")
    return row[np.clip(np.arange(frames) + by, 0, len(row) - 1)]
