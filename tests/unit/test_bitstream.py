import errno
import io
import sys
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senone import rangecoder
from senone.bitstream import BitstreamError, Writer, read
from senone.codes import Codes, CodeSpec, concat
from senone.rangecoder import Adaptive

SPEC = CodeSpec(16000, 320, (1024, 1000, 4096), "0123456789abcdef")


def draw(frames: int, spec: CodeSpec = SPEC, levels: int | None = None, seed: int = 0, cut: int = 0) -> Codes:
    """Random codes of which small ones are likelier, as in speech; the last frame lacks `cut` samples."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(spec.sizes[: levels or len(spec.sizes)])
    data = (torch.rand(1, len(sizes), frames, generator=random) ** 3 * sizes[:, None]).long()
    return Codes(data, torch.tensor([frames * spec.hop - cut]), spec)


def save(path: Path, codes: Codes, entropy: bool = False, piece: int = 37) -> bytes:
    levels, frames = codes.data.shape[1:]
    with Writer(path, codes.spec, levels, entropy) as writer:
        for first in range(0, frames, piece):
            data = codes.data[:, :, first : first + piece]
            left = int(codes.samples[0]) - first * codes.spec.hop
            writer.write(Codes(data, torch.tensor([min(left, data.shape[2] * codes.spec.hop)]), codes.spec))
    return path.read_bytes()


def load(path: Path) -> tuple[list[Codes], str | None]:
    with read(path) as reader:
        return list(reader), reader.lost


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 1000, 1024, 65536]), min_size=1, max_size=4),
    frames=st.integers(0, 260),
    levels=st.integers(1, 4),
    cut=st.integers(0, 319),
    entropy=st.booleans(),
)
def test_read_gives_what_was_written(tmp_path_factory, sizes, frames, levels, cut, entropy):
    spec = CodeSpec(16000, 320, tuple(sizes), "f")
    codes = draw(frames, spec, min(levels, len(sizes)), cut=cut if frames else 0)
    path = tmp_path_factory.mktemp("sno") / "x.sno"
    save(path, codes, entropy)
    pieces, lost = load(path)
    assert lost is None and [p.name for p in path.parent.iterdir()] == ["x.sno"]
    back = concat(pieces)
    assert torch.equal(back.data, codes.data) and torch.equal(back.samples, codes.samples) and back.spec == spec
    with read(path) as reader:
        assert (reader.levels, reader.entropy) == (codes.data.shape[1], entropy)


def test_packed_size_is_what_the_format_says(tmp_path):
    codes = draw(250)
    bits, blocks, header = 10 + 10 + 12, 3, 6 + 1 + 2 + 2 + 1 + 9 + 1 + 16 + 4
    packed = [-(-100 * bits // 8)] * 2 + [-(-50 * bits // 8)]
    assert len(save(tmp_path / "x.sno", codes)) == header + sum(packed) + blocks * (1 + 1 + 4) + 3


def test_format_does_not_change_unnoticed(tmp_path):
    """The bytes of version 1, written out: a change of format needs a new version."""
    spec = CodeSpec(8000, 100, (4, 16, 16), "ab")
    codes = Codes(torch.tensor([[[3, 0, 1], [15, 1, 2]]]), torch.tensor([299]), spec)
    expected = "534e4f01" + "0d00" + "00c03e640204011002006162"
    got = save(tmp_path / "x.sno", codes).hex()
    body = "00" + "c03e" + "64" + "02" + "0401" + "1002" + "00" + "6162"
    assert expected[:8] == got[:8] and got[8:12] == f"{len(body) // 2:02x}00" and got[12 : 12 + len(body)] == body
    # 11 1111 | 00 0001 | 01 0010 -> 11111100 00010100 10000000
    assert got[12 + len(body) + 8 : -8] == "01" + "03" + "ab02" + "fc1480"


@pytest.mark.parametrize("frames", [1, 20, 150, 2000])
def test_entropy_is_never_larger_and_gains_on_uneven_codes(tmp_path, frames):
    random = torch.Generator().manual_seed(1)
    even = torch.stack([torch.randint(size, (frames,), generator=random) for size in SPEC.sizes])[None]
    for data, gain in ((even, 1.0), (draw(frames).data, 0.95 if frames == 2000 else 1.0)):
        codes = Codes(data, torch.tensor([frames * 320]), SPEC)
        packed, coded = (len(save(tmp_path / "x.sno", codes, entropy)) for entropy in (False, True))
        assert coded <= gain * packed
        assert torch.equal(concat(load(tmp_path / "x.sno")[0]).data, data)


def test_range_coder_is_an_exact_inverse_when_contexts_collide(monkeypatch):
    monkeypatch.setattr(rangecoder, "SLOTS", 64)
    frames = draw(300).data[0].T.tolist()
    writer, reader = Adaptive((10, 10, 12)), Adaptive((10, 10, 12))
    assert reader.decode(writer.encode(frames), 300) == frames


def test_range_coder_is_an_exact_inverse_and_nears_the_entropy():
    frames = [[int(torch.tensor(0.7 * i).sin() > 0), 0] for i in range(3000)]
    writer, reader = Adaptive((1, 0)), Adaptive((1, 0))
    parts = [writer.encode(frames[i : i + 500]) for i in range(0, 3000, 500)]
    assert [row for part in parts for row in reader.decode(part, 500)] == frames
    # the sign changes with chance 0.7 / pi: 0.765 bits for whoever knows the one before
    assert 0.75 < sum(map(len, parts)) * 8 / 3000 < 0.80


@pytest.mark.parametrize("entropy", [False, True])
def test_truncated_file_gives_its_whole_blocks_and_says_so(tmp_path, entropy):
    codes, path = draw(450, cut=5), tmp_path / "x.sno"
    whole = save(path, codes, entropy)
    seen = set()
    for end in range(42, len(whole), 140):
        path.write_bytes(whole[:end])
        pieces, lost = load(path)
        seen.add(len(pieces))
        seconds = 2.0 * len(pieces)
        assert lost is not None and "is cut off" in lost and "what followed is lost" in lost and "\n" not in lost
        assert (f"the first {seconds:.2f} s are whole" in lost) == bool(pieces)
        if pieces:
            assert torch.equal(concat(pieces).data, codes.data[:, :, : 100 * len(pieces)])
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("entropy", [False, True])
def test_blocks_that_are_damaged_moved_repeated_or_of_another_file_end_it(tmp_path, entropy):
    path = tmp_path / "x.sno"
    codes = draw(450, cut=5)
    whole, other = save(path, codes, entropy), save(path, draw(450, seed=3), entropy)
    ends = _ends(path, whole)
    blocks = [whole[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    foreign = [other[a:b] for a, b in zip(_ends(path, other), _ends(path, other)[1:], strict=False)]
    head = whole[: ends[0]]
    flipped = bytearray(blocks[2])
    flipped[len(flipped) // 2] ^= 4
    for changed in (
        [*blocks[:2], bytes(flipped), *blocks[3:]],
        [*blocks[:2], *blocks[3:]],
        [*blocks[:3], *blocks[2:]],
        [*blocks[:2], blocks[3], blocks[2], blocks[4]],
        [*blocks[:2], *foreign[2:]],
    ):
        path.write_bytes(head + b"".join(changed))
        pieces, lost = load(path)
        assert 2 <= len(pieces) <= 3 and lost is not None
        assert torch.equal(concat(pieces).data, codes.data[:, :, : 100 * len(pieces)])
    path.write_bytes(whole + b"more")
    pieces, lost = load(path)
    assert torch.equal(concat(pieces).data, codes.data) and lost is not None and "after its end" in lost


def _ends(path: Path, data: bytes) -> list[int]:
    """Where the header and each block end."""
    path.write_bytes(data)
    with read(path) as reader:
        ends = [reader._file.tell()]
        for _ in reader:
            ends.append(reader._file.tell())
    return ends


def test_another_model_is_refused_by_fingerprint(tmp_path):
    save(tmp_path / "x.sno", draw(10))
    with read(tmp_path / "x.sno") as reader:
        reader.accept(SPEC)
        with pytest.raises(BitstreamError, match="of another model: its fingerprint is 0123456789abcdef, here beef"):
            reader.accept(replace(SPEC, fingerprint="beef"))


def test_bad_files_are_named(tmp_path):
    whole = save(tmp_path / "x.sno", draw(10))
    for data, what in (
        (b"", "is empty"),
        (b"RIFF, or something else", "is not a .sno file"),
        (whole[:2], "is not a .sno file"),
        (whole[:3] + b"\x02" + whole[4:], "is of version 02"),
        (whole[:20], "is cut off"),
        (whole[:9] + b"\x00" + whole[10:], "is damaged"),
    ):
        (tmp_path / "y.sno").write_bytes(data)
        with pytest.raises(BitstreamError, match=f"y.sno {what}"):
            read(tmp_path / "y.sno")
    with pytest.raises(BitstreamError, match="cannot read .*none.sno: No such file"):
        read(tmp_path / "none.sno")
    with pytest.raises(BitstreamError, match="cannot write .*: No such file"):
        save(tmp_path / "nowhere" / "x.sno", draw(10))


def test_codes_that_do_not_belong_are_refused_and_nothing_is_left(tmp_path):
    path = tmp_path / "x.sno"
    for bad in (draw(5, replace(SPEC, fingerprint="other")), draw(5, levels=2)):
        with pytest.raises(BitstreamError, match="another model or number of levels"), Writer(path, SPEC) as writer:
            writer.write(bad)
    with pytest.raises(BitstreamError, match="only the last piece"), Writer(path, SPEC) as writer:
        writer.write(draw(5, cut=1))
        writer.write(draw(5))
    with pytest.raises(BitstreamError, match="4 levels"):
        Writer(path, SPEC, 4)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.sno"
    path.write_bytes(b"old")

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BitstreamError, match="cannot write .*x.sno: No space left"), Writer(path, SPEC) as writer:
        writer._file.close()
        writer._file = Full()
        writer.write(draw(300))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_hostile_headers_cost_no_memory(tmp_path):
    """Sizes of 2^24 on 1,024 levels, and a block that claims 2^40 frames: refused before anything is allocated."""
    spec = CodeSpec(1 << 30, 1, (1 << 24,) * 1024, "f")
    save(tmp_path / "x.sno", draw(1, spec))
    assert load(tmp_path / "x.sno")[1] is None
    data = (tmp_path / "x.sno").read_bytes()
    start = _ends(tmp_path / "x.sno", data)[0]
    (tmp_path / "x.sno").write_bytes(data[:start] + b"\0\x80\x80\x80\x80\x80\x80\x01" + data[start:])
    pieces, lost = load(tmp_path / "x.sno")
    assert not pieces and lost is not None and "is damaged in block 1" in lost


def test_pipes(tmp_path, monkeypatch):
    codes = draw(250, cut=7)
    whole = save(tmp_path / "x.sno", codes, True)
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", type("Pipe", (), {"buffer": out}))
    with Writer("-", SPEC, entropy=True) as writer:
        writer.write(codes)
    assert out.getvalue() == whole
    monkeypatch.setattr(sys, "stdin", type("Pipe", (), {"buffer": io.BytesIO(whole)}))
    with read("-") as reader:
        assert torch.equal(concat(list(reader)).data, codes.data) and reader.lost is None


def test_fuzzed_streams_give_no_wrong_codes(tmp_path, monkeypatch):
    """2,000 mutated streams; `benchmarks/fuzz_bitstream.py` does 100,000."""
    monkeypatch.setattr(rangecoder, "SLOTS", rangecoder.SLOTS)  # fuzz changes it
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    fuzz = run_path(str(Path(__file__).parents[2] / "benchmarks/fuzz_bitstream.py"))["fuzz"]
    counts = fuzz(2000, seed=1, folder=tmp_path)
    assert sum(counts.values()) == 2000 and counts["refused"] > 500 and counts["lost"] > 500
