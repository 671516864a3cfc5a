"""Lists of recordings, and batches that are a function of (seed, step, row)."""

import json
from itertools import islice

import numpy as np
import pytest
import torch

from senone.audio import Audio
from senone.data import augment, manifest
from senone.data.loader import Crops, Store
from senone.data.manifest import Cut, DataError

RATE = 8000


def flat(path, seconds: float, value: float, rate: int = RATE) -> Cut:
    """A recording that is `value` everywhere, so that a crop tells where it comes from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Audio(torch.full((1, round(seconds * rate)), value), rate).save(path)
    return Cut(path.stem, str(path), seconds)


def ramp(path, seconds: float) -> Cut:
    """A recording that rises from 0 to 1, so that a sample tells its place."""
    Audio(torch.linspace(0, 0.99, round(seconds * RATE))[None], RATE).save(path)
    return Cut(path.stem, str(path), seconds)


@pytest.fixture
def cuts(tmp_path):
    return [flat(tmp_path / "a.wav", 0.5, 0.125), ramp(tmp_path / "b.wav", 3.0), flat(tmp_path / "c.wav", 1.5, 0.5)]


def crops(cuts, **more) -> Crops:
    return Crops(Store(cuts, RATE), 2000, 6, **{"gain": 20.0, "seed": 3} | more)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(bool((torch.as_tensor(one[key]) == other[key]).all()) for key in one)


def test_a_batch_depends_on_seed_and_step_alone(cuts):
    fresh = crops(cuts).batch(11)
    used = crops(cuts)
    for step in (3, 2, 12):
        assert not same(used.batch(step), fresh)
    assert same(used.batch(11), fresh)
    assert not torch.equal(crops(cuts, seed=4).batch(11)["wave"], fresh["wave"])
    assert fresh["wave"].shape == (6, 2000) and fresh["wave"].dtype == torch.float32 and fresh["step"] == 11


def test_a_stream_goes_on_anywhere(cuts):
    data = crops(cuts)
    for step, batch in islice(enumerate(crops(cuts).stream(5), 5), 12):
        assert same(batch, data.batch(step))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batch_of_one(cuts, world):
    whole = crops(cuts).batch(2)
    parts = [crops(cuts, rank=rank, world=world).batch(2) for rank in range(world)]
    for key in ("wave", "target", "chance"):
        assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])
    with pytest.raises(DataError, match="6 crops .* 4 processes"):
        crops(cuts, world=4)


def test_partial_reads_give_the_same_crops(cuts):
    whole, part = crops(cuts), Crops(Store(cuts, RATE, memory=0), 2000, 6, seed=3)
    assert (whole.store.fit, part.store.fit) == (3, 0)
    for step in range(4):
        assert (whole.batch(step)["wave"] - part.batch(step)["wave"]).abs().max() < 1e-4  # kept as int16
    assert not part.store._kept and len(whole.store._kept) == 3


def test_crops_are_uniform_over_the_sound(cuts):
    data = Crops(Store(cuts, RATE), 800, 2000, gain=0)
    wave = data.batch(0)["wave"]
    still = (wave.amax(1) - wave.amin(1)) < 1e-3
    low, high = (torch.isclose(wave[:, 0], torch.tensor(value), atol=1e-3) & still for value in (0.125, 0.5))
    for share, true in ((low, 0.1), (high, 0.3), (~still, 0.6)):
        assert abs(share.float().mean() - true) < 3.5 * (true * (1 - true) / 2000) ** 0.5
    starts = wave[~still][:, 0] / 0.99 * 3.0  # seconds, uniform on [0, 2.9]
    assert abs(starts.mean() - 1.45) < 0.1 and starts.min() < 0.05 and starts.max() > 2.85


def test_short_cuts_are_followed_by_silence(tmp_path):
    wave = crops([flat(tmp_path / "a.wav", 0.1, 0.5)], gain=0).batch(0)["wave"]
    assert torch.allclose(wave[:, :800], torch.tensor(0.5), atol=1e-3) and not wave[:, 800:].any()


def test_a_cut_is_a_part_of_its_recording(tmp_path):
    whole = ramp(tmp_path / "b.wav", 3.0)
    wave = crops([Cut("b", whole.path, 0.5, start=2.0)], gain=0).batch(0)["wave"]
    assert wave.min() > 0.99 * 2 / 3 - 1e-3 and wave.max() < 0.99 * 2.5 / 3 + 1e-3


def test_gain_is_uniform_in_decibels():
    rng = np.random.default_rng(0)
    loud = 20 * np.log10([augment.gain(rng, 20.0) for _ in range(2000)])
    assert -20 <= loud.min() < -19.9 and -0.1 < loud.max() <= 0 and abs(loud.mean() + 10) < 0.4


def test_noise_stays_or_goes_as_the_flag_says(tmp_path):
    speech = Store([flat(tmp_path / "a.wav", 1.0, 0.25)], RATE)
    noise = Store([flat(tmp_path / "n.wav", 1.0, 0.01)], RATE)
    batch = Crops(speech, 400, 1000, noise=noise, noisy=0.4, gain=0).batch(0)
    wave, target, flag = batch["wave"][:, 0], batch["target"][:, 0], batch["denoise"]
    assert flag.dtype == torch.bool and abs(flag.float().mean() - 0.5) < 0.06
    assert torch.equal(wave[~flag], target[~flag])  # what shall stay, stays
    assert Crops(speech, 400, 100, noise=noise, flagged=1.0).batch(0)["denoise"].all()
    assert torch.allclose(target[flag], torch.tensor(0.25), atol=1e-3)
    noisy = wave > 0.251
    assert abs(noisy.float().mean() - 0.4) < 0.06
    decibels = 20 * torch.log10((wave[noisy] - 0.25) / 0.25)  # peak to peak
    assert -30.1 < decibels.min() < -28 and -2 < decibels.max() < 0.1 and abs(decibels.mean() + 15) < 1.5


def test_a_mixture_never_clips_and_keeps_its_proportion():
    clean, noise = np.full(8, 0.9, np.float32), np.full(8, 0.3, np.float32)
    noisy, target = augment.mix(clean, noise, 0.0)
    assert noisy.max() == pytest.approx(1.0) and noisy.max() / target.max() == pytest.approx(2.0)
    assert np.abs(augment.mix(np.zeros(8, np.float32), noise, 0.0)[0]).max() < 0.06  # silence is not blown up


def test_files_that_cannot_be_read_are_named_and_passed_over(cuts, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound at all")
    bad = Cut("bad", str(tmp_path / "bad.wav"), 5.0)
    data = crops([*cuts, bad])
    batch = data.batch(0)
    assert list(data.skipped) == [bad.path] and "bad.wav is not audio" in data.skipped[bad.path]
    assert same(data.batch(0), batch) and batch["wave"].abs().amax(1).min() > 0
    with pytest.raises(DataError, match="cannot be read; .*bad.wav"):
        crops([bad]).batch(0)


def test_a_folder_becomes_cuts(tmp_path):
    flat(tmp_path / "anna" / "2.wav", 0.5, 0.1, rate=16000)
    flat(tmp_path / "anna" / "1.flac", 0.25, 0.1)
    flat(tmp_path / "top.wav", 0.1, 0.1)
    (tmp_path / "text.wav").write_text("not sound")
    (tmp_path / "notes.txt").write_text("not even by name")
    skipped: list[str] = []
    found = list(manifest.build(tmp_path, skipped.append))
    facts = [(cut.id, cut.seconds, cut.speaker) for cut in found]
    assert facts == [("anna/1", 0.25, "anna"), ("anna/2", 0.5, "anna"), ("top", 0.1, None)]
    assert len(skipped) == 1 and "text.wav" in skipped[0]
    with pytest.warns(UserWarning, match="1 files skipped: .*text.wav"):
        assert manifest.read(tmp_path) == found
    with pytest.raises(DataError, match="nowhere is not a folder"):
        list(manifest.build(tmp_path / "nowhere"))


def test_jsonl_comes_back(tmp_path):
    first = flat(tmp_path / "a.wav", 1.0, 0.1)
    cuts = [first, Cut("x", first.path, 0.25, 0.5, "anna", 'says "ä"', "train"), Cut("y", first.path, 0.5, split="dev")]
    out = tmp_path / "list.jsonl"
    assert manifest.write(out, cuts) == 3
    assert manifest.read(out, split=None) == cuts
    assert [cut.id for cut in manifest.read(out)] == ["a", "x"]
    cut = json.loads(out.read_text().splitlines()[1])  # what lhotse's MonoCut.from_dict asks for
    assert cut["type"] == "MonoCut" and cut["channel"] == 0 and (cut["start"], cut["duration"]) == (0.5, 0.25)
    said = cut["supervisions"][0]
    assert said["recording_id"] == cut["recording"]["id"] and said["start"] == 0 and said["text"] == 'says "ä"'
    sound = cut["recording"]
    assert (sound["sampling_rate"], sound["num_samples"], sound["duration"]) == (RATE, RATE, 1.0)


def test_jsonl_paths_are_relative_to_it(tmp_path):
    flat(tmp_path / "sound" / "a.wav", 1.0, 0.1)
    recording = {"sources": [{"type": "file", "channels": [0], "source": "sound/a.wav"}]}
    line = {"id": "a", "start": 0, "duration": 1, "recording": recording, "supervisions": []}
    (tmp_path / "list.jsonl").write_text(json.dumps(line) + "\n\n")
    (cut,) = manifest.read(tmp_path / "list.jsonl")
    assert cut.path == str(tmp_path / "sound" / "a.wav") and cut.seconds == 1.0 and cut.speaker is None


def test_tsv_and_several_at_once(tmp_path):
    for name in ("one", "two"):
        flat(tmp_path / name / "a.wav", 1.0, 0.1)
        rows = "a.wav\t1.0\tanna\thello\ttrain", 'a.wav\t1.0\tanna\tsaid "so\ttest', "a.wav\t1.0\t\t\t"
        (tmp_path / name / "manifest.tsv").write_text("\n".join(["path\tseconds\tspeaker\ttext\tsplit", *rows]) + "\n")
    cuts = manifest.read(f"{tmp_path / 'one'},{tmp_path / 'two' / 'manifest.tsv'}")
    place = str(tmp_path / "two" / "a.wav")
    assert len(cuts) == 4 and cuts[2] == Cut("a.wav", place, 1.0, speaker="anna", text="hello", split="train")
    assert manifest.read(tmp_path / "one", split="test")[0].text == 'said "so'
    with pytest.raises(DataError, match="no recordings in split 'dev' of the 3 in"):
        (tmp_path / "one" / "manifest.tsv").write_text("path\tseconds\tsplit\n" + "a.wav\t1\ttrain\n" * 3)
        manifest.read(tmp_path / "one", split="dev")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "path\tlength\n", "no column 'seconds'"),
        ("a.tsv", "path\tseconds\na.wav\tlong\n", "line 2: seconds must be a number, got 'long'"),
        ("a.tsv", "path\tseconds\na.wav\n", "line 2: seconds"),
        ("a.jsonl", '{"id": "a"}\n', "a.jsonl, line 1 is not a cut: KeyError 'recording'"),
        ("a.jsonl", "[]\n", "line 1 is not a cut"),
        ("a.jsonl", "hello\n", "line 1 is not a cut"),
        ("a.jsonl", "", "no recordings in"),
        ("a.wav", "\udcff", "a.wav is not text: give a folder"),
    ],
)
def test_bad_lists_are_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=said):
        manifest.read(tmp_path / name)


def test_missing_lists_and_unwritable_ones(tmp_path):
    with pytest.raises(DataError, match="cannot read .*none.tsv: No such file"):
        manifest.read(tmp_path / "none.tsv")
    with pytest.raises(DataError, match="no recordings in"):
        manifest.read(tmp_path)
    with pytest.raises(DataError, match="cannot write .*list.jsonl: No such file"):
        manifest.write(tmp_path / "none" / "list.jsonl", [])
    (tmp_path / "list.jsonl").write_text("kept")
    with pytest.raises(DataError, match="gone.wav is not audio"):
        manifest.write(tmp_path / "list.jsonl", [Cut("gone", str(tmp_path / "gone.wav"), 1.0)])
    assert [path.name for path in tmp_path.iterdir()] == ["list.jsonl"]
    assert (tmp_path / "list.jsonl").read_text() == "kept"


def test_real_speech_keeps_its_splits(data):
    folder = data / "librispeech_train_clean_100_part"
    train, dev = manifest.read(folder), manifest.read(folder, split="dev")
    assert (len(train), len(dev)) == (722, 21) and not {cut.path for cut in train} & {cut.path for cut in dev}
    batch = Crops(Store(train, 16000), 16000, 2).batch(0)
    assert batch["wave"].shape == (2, 16000) and batch["wave"].abs().amax() > 0.001
