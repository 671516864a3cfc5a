"""Discriminators: the sizes of the papers, and what each hears."""

import pytest
import torch

from senone.loss import adversarial
from senone.nn.discriminator import Judgement, MultiPeriod, MultiScale, MultiSpectrogram, MultiSTFT

SMALL = {
    "period": lambda: MultiPeriod(2),
    "slim": lambda: MultiPeriod(2, 2),
    "scale": lambda: MultiScale(4),
    "stfts": lambda: MultiSTFT(2),
    "spectrogram": lambda: MultiSpectrogram(2),
}


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (MultiPeriod, "41.1"),
        (lambda: MultiPeriod(16, 2), "10.28"),
        (MultiScale, "29.6"),
        (MultiSTFT, "0.47"),
        (MultiSpectrogram, "18.10"),
    ],
)
def test_sizes_are_those_of_the_papers(build, count):
    with torch.device("meta"):
        model = build()
    numbers = sum(value.numel() for value in model.parameters())
    gains = sum(len(value) for name, value in model.named_parameters() if name.endswith("bias"))  # weight norm's
    places = len(count.partition(".")[2])
    assert f"{(numbers + gains) / 1e6:.{places}f}" == count


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("samples", [1999, 4800])
def test_a_piece_of_any_length_is_judged_and_every_weight_learns(kind, samples):
    model = SMALL[kind]()
    wave = torch.randn(2, 6000)[:, 100 : 100 + samples].requires_grad_()  # as training cuts it: not contiguous
    said = model(wave)
    assert all(s.logits.ndim == 2 and len(s.logits) == 2 for s in said)
    adversarial.generator(said, "least_squares").backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert wave.grad is not None and bool(torch.isfinite(wave.grad).all()) and bool(wave.grad.any())


def test_a_period_sees_every_periodth_sample():
    model = MultiPeriod(2, periods=(5,))
    wave = torch.randn(1, 500)
    other = wave.clone()
    other[0, 3::5] += 1  # one column of five
    (a,), (b,) = model(wave), model(other)
    changed = (a.features[-1] != b.features[-1]).any(2).any(1)[0]  # by column
    assert changed.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("size", [78, 2296])
def test_spectrograms_are_magnitudes(size):
    model = MultiSpectrogram(2, (size,))
    wave = torch.randn(1, 4000)
    (a,), (b,) = model(wave), model(-wave)
    assert torch.equal(a.logits, b.logits)


def test_complex_spectra_hear_the_sign():
    model = MultiSTFT(2, (256,))
    wave = torch.randn(1, 4000)
    (a,), (b,) = model(wave), model(-wave)
    assert not torch.allclose(a.logits, b.logits)


def judged(*values: float) -> list[Judgement]:
    return [Judgement(torch.full((2, 3), value), []) for value in values]


def test_losses_of_constant_judgements():
    real, fake = judged(0.5, 2.0), judged(-0.5, 1.0)
    squares = [(1 - 0.5) ** 2 + 0.5**2, (1 - 2.0) ** 2 + 1.0**2]
    assert adversarial.discriminator(real, fake, "least_squares").item() == pytest.approx(sum(squares) / 2)
    assert adversarial.generator(fake, "least_squares").item() == pytest.approx((1.5**2 + 0) / 2)
    hinge = [(1 - 0.5) + (1 - 0.5), 0 + (1 + 1.0)]
    assert adversarial.discriminator(real, fake).item() == pytest.approx(sum(hinge) / 2)
    assert adversarial.generator(fake).item() == pytest.approx((1.5 + 0) / 2)
    assert adversarial.discriminator(judged(1.0), judged(0.0), "least_squares").item() == 0
