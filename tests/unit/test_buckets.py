"""Batches without padding: like lengths together, a function of the step, shared by processes."""

import numpy as np
import pytest
import torch

from senone.audio import Audio
from senone.data.buckets import Buckets
from senone.data.loader import Store
from senone.data.manifest import DataError, read


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Recordings of 0.5 to 6 s whose samples tell where they are: a slow ramp."""
    folder = tmp_path_factory.mktemp("ramps")
    for i, seconds in enumerate((0.5, 1.5, 1.6, 2.2, 3.1, 4.5, 6.0)):
        Audio(torch.arange(round(seconds * 16000))[None] / 2**17, 16000).save(folder / f"{i}.wav")
    return Store(read(folder), 16000)


def where(rng, cut, first, samples, speed):
    return {"first": np.array(first), "cut": np.array(int(cut.id)), "draw": np.array(rng.random())}


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)


def test_a_batch_is_a_function_of_the_step(store):
    one, two = (Buckets(store, 8, 3, where, seed=5) for _ in range(2))
    same(one.batch(7), two.batch(7))
    assert not torch.equal(one.batch(7)["draw"][:1], one.batch(8)["draw"][:1])
    stream = two.stream(6)
    assert next(stream)["step"] == 6
    same(next(stream), one.batch(7))
    stream.close()


def test_crops_are_whole_frames_of_sound_without_padding(store):
    data = Buckets(store, 8, 3, where)
    for step in range(20):
        batch = data.batch(step)
        samples = batch["wave"].shape[1]
        assert (samples - 400) % 320 == 0 and 1.4 * 16000 < samples <= 3 * 16000
        assert 4 <= batch["wave"].numel() / 16000 <= 12 and 0 not in batch["cut"]
        for wave, first in zip(batch["wave"], batch["first"], strict=True):
            assert first % 320 == 0 and round(float(wave[0]) * 2**17) == pytest.approx(int(first), abs=4)
            assert float(wave[-1]) > 0  # sound to the end


def test_long_recordings_are_heard_as_often_as_they_are_long(store):
    data = Buckets(store, 8, 3, where)
    cuts = torch.cat([data.batch(step)["cut"] for step in range(400)])
    share = torch.bincount(cuts, minlength=7) / len(cuts)
    assert share[6] > 2 * share[1] and (share[1:] > 0.02).all()


def test_processes_share_the_rows_of_one(store):
    kwargs = {"seconds": 12, "longest": 2, "extra": where, "world": 2}
    halves = [Buckets(store, rank=rank, **kwargs) for rank in (0, 1)]
    for step in range(5):
        parts = [half.batch(step) for half in halves]
        assert parts[0]["wave"].shape == parts[1]["wave"].shape
        assert not torch.equal(parts[0]["draw"], parts[1]["draw"])


def test_unreadable_files_are_noted_and_others_taken(store, tmp_path):
    for i in range(3):
        Audio(torch.rand(1, 32000), 16000).save(tmp_path / f"{i}.wav")
    broken = Store(read(tmp_path), 16000)
    (tmp_path / "1.wav").write_bytes(b"no sound")
    data = Buckets(broken, 6, 2, where)
    cuts = torch.cat([data.batch(step)["cut"] for step in range(10)])
    assert 1 not in cuts and [path[-5:] for path in data.skipped] == ["1.wav"]
    with pytest.raises(DataError, match="no recording is 9 s long"):
        Buckets(store, 6, 2, where, shortest=9)


def test_at_another_speed_a_crop_has_another_length_and_its_extras_know(store):
    said = []
    data = Buckets(store, 8, 3, lambda rng, cut, first, samples, speed: said.append((samples, speed)) or {}, speed=0.2)
    factors = set()
    for step in range(30):
        batch = data.batch(step)
        samples, speed = said[-1]
        assert batch["samples"] == samples and (samples - 400) % 320 == 0
        assert batch["wave"].shape[1] == round(samples * speed) and batch["wave"].shape[1] % 320 == 0
        assert (batch["wave"][:, -1] > 0).all()  # sound to the end
        factors.add(speed)
    assert 0.75 < min(factors) < 0.9 and 1.1 < max(factors) < 1.25
