"""What tests of several models ask alike."""

from collections.abc import Callable

import pytest
import torch

from senone.tokenizer import AudioTokenizer


@pytest.fixture
def onset() -> Callable[[AudioTokenizer, int, int], int]:
    """Of a causal model, the width of its vectors and a frame of 30: the first sample of the recording that sounds
    otherwise when this frame does (its copy comes `delay` late)."""

    def first(model: AudioTokenizer, width: int, changed: int) -> int:
        z = torch.randn(1, width, 30)
        other = z.clone()
        other[:, :, changed] += 1
        with torch.no_grad():
            apart = (model.synthesise(z)[0] - model.synthesise(other)[0])[0, 0].abs()
        return int(apart.nonzero()[0, 0]) - model.delay

    return first
