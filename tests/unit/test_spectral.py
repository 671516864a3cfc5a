"""The frame-rate codec: what a frame of its decoder sees, what waiting costs, and its laws with random weights."""

from dataclasses import replace

import pytest

from senone.models.spectral import Config, Spectral
from senone.testing import laws

SMALL = Config(encoder_dim=24, encoder_blocks=1, decoder_dim=24, decoder_blocks=1, steps=(3, 3), levels=3)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_frame_of_sound_sees_so_many_frames_ahead_and_no_more(ahead, onset):
    model = Spectral(replace(SMALL, ahead=ahead)).eval()
    hop, changed = model.hop, 15
    # windows of two hops: a spectrum begins to sound a hop before the frame that it is of
    assert changed - ahead - 1 <= onset(model, model.config.encoder_dim, changed) / hop < changed - ahead
    assert model.latency == (2 + ahead) * hop / 16000


def test_all_that_is_seen_ahead_is_used_from_the_start():
    """Of `1 + ahead` taps of the decoder's first layer each has weights of its own."""
    model = Spectral(replace(SMALL, ahead=3))
    taps = model.decoder_in.weight.detach().square().sum((0, 1))
    assert len(taps) == 4 and float(taps.min()) > 0.5 * float(taps.max())


def test_it_keeps_the_laws():
    assert [law for law in laws(Spectral(SMALL), examples=6) if not law.ok] == []
