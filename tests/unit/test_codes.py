from fractions import Fraction

import pytest
import torch

from senone.codes import Codes, CodesError, CodeSpec, concat

SPEC = CodeSpec(16000, 320, (8, 1024), "0123456789abcdef")


def make(*samples: int) -> Codes:
    frames = SPEC.frames(max(samples))
    return Codes(torch.randint(8, (len(samples), 2, frames)), torch.tensor(samples), SPEC)


def test_spec_rates():
    assert SPEC.frame_rate == Fraction(50) and SPEC.token_rate == 100 and SPEC.bitrate == 50 * 13
    assert [SPEC.frames(n) for n in (0, 1, 320, 321)] == [0, 1, 1, 2]


def test_slices():
    codes = make(16000, 401)
    assert codes[1].data.shape == (1, 2, 2) and codes[-1].samples.tolist() == [401]
    assert codes.levels(1).data.shape == (2, 1, 50) and codes.levels(slice(None, 1)).data.shape == (2, 1, 50)
    middle = codes.seconds(0.5, 0.6)
    assert middle.samples.tolist() == [1600, 0] and torch.equal(middle.data, codes.data[:, :, 25:30])
    assert [len(row) for row in codes] == [1, 1]


def test_save_load_and_concat(tmp_path):
    codes = make(16001)
    codes.save(tmp_path / "x.codes")
    back = Codes.load(tmp_path / "x.codes")
    assert torch.equal(back.data, codes.data) and back.spec == SPEC
    joined = concat([codes.seconds(0, 0.5), codes.seconds(0.5, 2)])
    assert torch.equal(joined.data, codes.data) and joined.samples.tolist() == [16001]


@pytest.mark.parametrize("levels", [0, 3, slice(1, 2)])
def test_wrong_levels(levels):
    with pytest.raises(CodesError, match="level"):
        make(320).levels(levels)


def test_codes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(CodesError, match="outside of their sizes"):
        Codes(torch.full((1, 1, 1), 8), torch.tensor([1]), SPEC)
    with pytest.raises(CodesError, match="do not make 1 frames"):
        Codes(torch.zeros(1, 1, 1, dtype=torch.int64), torch.tensor([321]), SPEC)
    with pytest.raises(CodesError, match="only the last piece"):
        concat([make(321), make(320)])
    (tmp_path / "text.codes").write_text("hello")
    with pytest.raises(CodesError, match="text.codes is not a file of codes"):
        Codes.load(tmp_path / "text.codes")


@pytest.mark.parametrize("samples", [torch.tensor([-5]), torch.tensor([1.0]), torch.tensor([1, 1])])
def test_samples_are_counts(samples):
    with pytest.raises(CodesError, match="samples must be 1 counts, int64"):
        Codes(torch.zeros(1, 1, 1 if samples[0] > 0 else 0, dtype=torch.int64), samples, SPEC)


def test_a_file_of_codes_that_do_not_fit_is_named(tmp_path):
    codes = make(320)
    codes.data[0, 0, 0] = 8  # out of range, behind the back of the check
    codes.save(tmp_path / "x.codes")
    with pytest.raises(CodesError, match="x.codes is not a file of codes: codes outside of their sizes"):
        Codes.load(tmp_path / "x.codes")
