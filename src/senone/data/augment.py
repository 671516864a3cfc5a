"""Gain and noise: what happens to a crop before a model hears it."""

import numpy as np


def gain(rng: np.random.Generator, decibels: float) -> float:
    """A factor between -`decibels` dB and 0 dB, uniform in dB."""
    return 10 ** (-decibels * rng.random() / 20)


def mix(clean: np.ndarray, noise: np.ndarray, decibels: float) -> tuple[np.ndarray, np.ndarray]:
    """(noisy, clean), the noise `decibels` against the speech, peak to peak (SoundStream §IV-A).

    The paper brings both peaks to 1 and the noise down; we keep the level of the speech, which is the same up to a
    factor, so that a crop of silence is not blown up. Both are scaled down together where the sum would clip.
    """
    loud, peak = np.abs(noise).max(), max(np.abs(clean).max(), 0.05)
    noisy = clean + noise * (10 ** (decibels / 20) * peak / max(loud, 1e-4))
    scale = np.float32(1 / max(1.0, np.abs(noisy).max()))
    return (noisy * scale).astype(np.float32), clean * scale
