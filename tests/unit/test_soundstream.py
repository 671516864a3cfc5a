"""SoundStream against its paper: causality, streaming, FiLM frame by frame, size, and the hinge losses."""

from pathlib import Path

import pytest
import torch

from senone import hub
from senone.audio import Audio
from senone.codes import CodesError
from senone.config import ConfigError
from senone.eval.metrics import METRICS, Item, measure
from senone.loss import adversarial
from senone.models import spectral
from senone.models.soundstream import Config, SoundStream, paper_24k
from senone.nn.discriminator import Judgement
from senone.testing import laws

SMALL = Config(sample_rate=16000, encoder_filters=4, decoder_filters=4, strides=(2, 4, 5), dim=16, levels=4, size=32)
HOP = 40
ROOT = Path(__file__).parents[2]


def small(**changes) -> SoundStream:
    """Random weights, a FiLM that does something, and codebooks that fit the encoder."""
    torch.manual_seed(0)
    model = SoundStream(Config(**vars(SMALL) | changes))
    torch.nn.init.normal_(model.film.table.weight)
    if model.denoiser is not None:
        for weight in (*(unit.mix.weight for unit in model.denoiser.net[1:-1]), *model.denoiser.film.parameters()):
            torch.nn.init.normal_(weight, std=0.1)
    for _ in range(3):
        model(speech(8000).view(4, 1, -1), denoise=torch.rand(4, 50) > 0.5)
    return model.eval()


def speech(samples: int) -> torch.Tensor:
    tone = torch.sin(torch.arange(samples) * 0.05)
    loudness = torch.rand(samples // 500 + 1).repeat_interleave(500)[:samples]
    return ((0.3 * tone + 0.1 * torch.randn(samples)) * loudness)[None]


def test_the_laws_hold():
    model = small()
    assert len(model.encode(Audio(speech(16000), 16000)).data.unique()) > 20
    assert not [law for law in laws(model, examples=6) if not law.ok]


@pytest.mark.parametrize("sample", [0, HOP - 1, HOP, 10 * HOP + 7, 19 * HOP])
def test_nothing_before_a_changed_sample_changes(sample):
    model = small().double()
    wave = speech(20 * HOP)[None].double()
    changed = wave.clone()
    changed[:, :, sample] += 0.5
    frame = sample // HOP
    with torch.no_grad():
        (a, _), (b, _) = model.analyse(wave), model.analyse(changed)
        assert torch.equal(a[:, :, :frame], b[:, :, :frame]) and not torch.equal(a[:, :, frame], b[:, :, frame])
        (x, _), (y, _) = model.synthesise(a), model.synthesise(b)
    assert torch.equal(x[:, :, : frame * HOP], y[:, :, : frame * HOP])
    assert not torch.equal(x[:, :, frame * HOP :], y[:, :, frame * HOP :])


def test_the_declared_context_covers_what_a_frame_changes():
    """Frame 5 changes nothing from `context.past` after its end on, and it does change something close before."""
    model = small().double()
    z = torch.randn(1, 16, 60, dtype=torch.double)
    other = z.clone()
    other[:, :, 5] += 1
    with torch.no_grad():
        changed = (model.synthesise(z)[0] != model.synthesise(other)[0])[0, 0].nonzero()[:, 0]
    needed = int(changed[-1]) + 1 - 6 * HOP
    assert int(changed[0]) == 5 * HOP and needed <= model.context.past * 16000 <= needed + 2 * HOP


def test_any_number_of_levels_decodes_and_more_are_closer_to_the_encoder():
    model, wave = small(), speech(8000)
    with torch.no_grad():
        z, _ = model.analyse(wave[None])
        error = [float((model.quantizer.decode(model.quantizer.encode(z, k)) - z).square().mean()) for k in range(1, 5)]
    assert error == sorted(error, reverse=True)
    for k in range(1, 5):
        (back,) = model.decode(model.encode(Audio(wave, 16000), levels=k))
        assert back.wave.shape == wave.shape and torch.isfinite(back.wave).all()
    with pytest.raises(CodesError, match="levels must be 1 to 4, got 5"):
        model.encode(Audio(wave, 16000), levels=5)


def test_a_denoise_flag_at_a_frame_leaves_everything_before_alone():
    model, frames, change = small(), 50, 23
    sound = Audio(speech(frames * HOP), 16000)
    flag = torch.arange(frames)[None] >= change
    off, on, later = (model.encode(sound, denoise=denoise) for denoise in (False, True, flag))
    assert torch.equal(later.data[:, :, :change], off.data[:, :, :change])
    assert not torch.equal(later.data[:, :, change:], off.data[:, :, change:])
    # the embedding sees two frames back
    assert torch.equal(later.data[:, :, change + 2 :], on.data[:, :, change + 2 :])
    x, y = (model.decode(codes)[0].wave[:, : change * HOP] for codes in (off, later))
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("denoiser", [0, 8])
def test_flags_follow_the_blocks_of_a_long_recording_and_the_calls_of_a_stream(denoiser):
    model, frames = small(denoiser=denoiser), 15 * 400  # 15 s in two blocks
    sound, flag = Audio(speech(frames * HOP), 16000), torch.rand(1, frames) > 0.5
    flag[:, :1000] = False  # the first flag comes in the second call
    whole = model.encode(sound, denoise=flag)
    session, parts = model.stream(), []
    for wave, now in zip(sound.wave.split(600 * HOP, 1), flag.split(600, 1), strict=True):
        parts.append(session.encode(wave, denoise=now).data)
    assert torch.equal(torch.cat(parts, 2), whole.data)


def test_a_denoiser_leaves_frames_without_a_flag_alone_and_hears_flagged_ones_only():
    model, frames, change = small(denoiser=8), 200, 90
    sound = speech(frames * HOP)
    plain = SoundStream(Config(**vars(SMALL))).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("denoiser")})
    off, on = (model.encode(Audio(sound, 16000), denoise=flag).data for flag in (False, True))
    assert torch.equal(plain.encode(Audio(sound, 16000)).data, off) and not torch.equal(off, on)
    assert not torch.equal(plain.encode(Audio(sound, 16000), denoise=True).data, on)
    # a row beside a flagged one; then a recording whose beginning, not flagged, is another
    flags = torch.tensor([[False], [True]]).expand(2, frames)
    assert torch.equal(model.encode([Audio(sound, 16000)] * 2, denoise=flags).data, torch.cat([off, on]))
    late, heard = torch.arange(frames)[None] >= change, model.double()
    with torch.no_grad():
        a = torch.randn(1, 16, frames * 5, dtype=torch.double)
        b = torch.cat([torch.randn_like(a[:, :, : change * 5]), a[:, :, change * 5 :]], 2)
        x, y = (heard.denoiser(part, late)[0] for part in (a, b))
    assert torch.equal(x[:, :, change * 5 :], y[:, :, change * 5 :])
    assert torch.equal(x[:, :, : change * 5], a[:, :, : change * 5])
    assert not torch.equal(x[:, :, change * 5 :], a[:, :, change * 5 :])


def test_an_unknown_condition_is_refused():
    with pytest.raises(CodesError, match="no condition 'dereverb', only denoise"):
        small().encode(Audio(speech(400), 16000), dereverb=True)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (SoundStream, {"dim": 0}),
        (SoundStream, {"strides": ()}),
        (SoundStream, {"beam": 0}),
        (SoundStream, {"ahead": -1}),
        (spectral.Spectral, {"steps": (8, 0)}),
        (spectral.Spectral, {"ahead": -1}),
    ],
)
def test_sizes_that_cannot_be_are_refused(kind, sizes):
    with pytest.raises(ConfigError, match=f"{[*sizes][0]}: .* or more"):
        kind(kind.Config(**sizes))


def test_more_look_ahead_than_the_first_layer_sees_is_refused():
    with pytest.raises(ConfigError, match="ahead: 7 must be 6 or less: the first layer sees 7 frames"):
        small(ahead=7)


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_frame_of_sound_sees_so_many_frames_ahead_and_no_more(ahead, onset):
    model, changed = small(ahead=ahead), 15
    assert onset(model, model.config.dim, changed) == (changed - ahead) * HOP
    assert model.latency == (1 + ahead) * HOP / 16000


def test_the_start_is_as_good_however_far_it_looks_ahead():
    """A linear transform codec from the first step on, its output at the right time (0 where it is not)."""
    wave = speech(200 * HOP)[None]
    found = []
    for ahead in (0, 3):
        torch.manual_seed(0)
        model = SoundStream(Config(sample_rate=16000, encoder_filters=8, decoder_filters=8, ahead=ahead))
        with torch.no_grad():
            out = model(wave, quantise=False).wave
        found.append(float(torch.cosine_similarity(out, wave, 2)))
    assert min(found) > 0.35


def test_the_paper_net_has_its_rates_and_its_size():
    model = paper_24k()
    assert model.config.encoder_filters == model.config.decoder_filters == 32 and model.hop == 320
    assert 8e6 < sum(p.numel() for p in model.parameters()) < 10e6
    assert model.latency == 320 / 24000  # architectural: one frame, no look-ahead
    assert [model.levels_for(kbps=kbps) for kbps in (3, 6, 9, 12, 18)] == [4, 8, 12, 16, 24]
    with pytest.raises(CodesError, match="one level takes 0.75 kb/s"):
        model.levels_for(kbps=0.5)


def test_hinge_losses_on_constants():
    def judged(value: float) -> list[Judgement]:
        return [Judgement(torch.full((2, 5), value), [torch.full((2, 3), value)]) for _ in range(3)]

    for real, fake, expected in ((1.0, -1.0, 0), (2.0, -3.0, 0), (0.0, 0.0, 2), (-1.0, 1.0, 4), (1.0, 0.5, 1.5)):
        assert float(adversarial.discriminator(judged(real), judged(fake))) == expected
    for fake, expected in ((1.0, 0), (3.0, 0), (0.0, 1), (-1.0, 2)):
        assert float(adversarial.generator(judged(fake))) == expected
    assert float(adversarial.features(judged(1.0), judged(-2.0))) == 3


def test_training_takes_levels_and_flags_and_gives_named_losses():
    model = small().train()
    out = model(speech(8001).expand(2, -1)[:, None], torch.tensor([1, 4]), denoise=torch.tensor([[True], [False]]))
    assert out.wave.shape == (2, 1, 8001) and out.codes.shape == (2, 4, 201) and out.losses.keys() == {"commit"}
    (out.wave.square().mean() + out.losses["commit"]).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_flag_of_the_model_that_ships_takes_noise_out_and_leaves_speech_alone():
    clean = Audio.read(ROOT / "examples" / "clip.flac", seconds=6).mono().resample(16000).wave
    spectrum = torch.fft.rfft(torch.randn(clean.shape))
    noise = torch.fft.irfft(spectrum / (1 + torch.arange(spectrum.shape[1]) / 1200), clean.shape[1])  # -3 dB at 200 Hz
    noisy = clean + noise * (clean.square().mean() / noise.square().mean() / 10**0.5).sqrt()  # 5 dB
    model, ratio = hub.load("soundstream-mini"), {}
    for name, wave in (("noisy", noisy), ("clean", clean)):
        for flag in (False, True):
            (back,) = model.decode(model.encode(Audio(wave, 16000), denoise=flag))
            item = Item(clean[0].numpy(), back.wave[0].numpy())
            ratio[name, flag] = measure(METRICS.get("si_sdr")(), item).value
    assert ratio["noisy", True] > ratio["noisy", False] + 1.5
    assert ratio["clean", True] > ratio["clean", False] - 0.7
