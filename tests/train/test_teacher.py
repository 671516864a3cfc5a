"""Teachers: features on the very crop, one frame of the codec each; hidden states that carry a gradient; refusals."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import senone
from senone.config import ConfigError
from senone.eval.whisper import Whisper
from senone.loss import distill, spectral
from senone.models import soundstream
from senone.models.hubert import Hubert
from senone.models.units import MFCC, Units
from senone.train import CodecTask, TrainError, recipe_for
from senone.train.codec import Judge
from senone.train.teacher import Perceptual, Teacher, resampled

SMALL = {"model.encoder_filters": 2, "model.decoder_filters": 2, "model.dim": 8, "model.levels": 2, "model.size": 8}
EXAMPLES = Path(__file__).parents[2] / "examples"
RATES = {16000: (2, 4, 5, 8), 24000: (4, 4, 5, 6)}  # 50 frames a second, both


@dataclass(frozen=True)
class Config(soundstream.Config):
    teacher_width: int = 0


class Student(soundstream.SoundStream):
    """A codec that learns from a teacher, as SpeechTokenizer does."""

    Config = Config

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        self.transform = nn.Linear(config.dim, max(1, config.teacher_width))

    def forward(self, wave, levels=None, *, quantise=True, target=None):
        out = super().forward(wave, levels, quantise=quantise)
        if target is None:
            return out
        said = self.transform(self.analyse(wave)[0].transpose(1, 2))
        loss = distill.d_axis(said, target) if target.is_floating_point() else distill.pseudo_label(said, target)
        return out._replace(losses=out.losses | {"distill": loss})


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Teachers on disk: an encoder at 50 frames a second, its units, MFCC at 100, a codec."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teachers")
    shape = {"channels": (8, 8), "kernels": (20, 32), "strides": (20, 16), "feat_norm": "layer", "feature_grad": 1.0}
    more = {"width": 8, "layers": 3, "heads": 2, "hidden": 16, "pos_kernel": 8, "pos_groups": 2}
    encoder = Hubert(Hubert.Config(**shape, **more)).eval()
    models = {
        "encoder": encoder,
        "units": Units.of(encoder, torch.randn(5, 8), layer=2),
        "mfcc": MFCC(),
        "codec": codec(16000),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def settings(rate: int = 16000) -> list[str]:
    return [*(f"{key}={value}" for key, value in SMALL.items()), f"model.sample_rate={rate}", "mel_windows=[256]"] + [
        f"model.strides={list(RATES[rate])}"
    ]


def codec(rate: int) -> soundstream.SoundStream:
    return soundstream.SoundStream(recipe_for("soundstream", soundstream.SoundStream, settings(rate)).model)


def task_of(*more: str) -> CodecTask:
    recipe = recipe_for("student", Student, [*settings(), *more])
    return CodecTask(Student(recipe.model), recipe)


def batch_of(samples: int = 6400, step: int = 5) -> dict:
    wave = torch.randn(2, samples) * 0.1
    return {"wave": wave, "target": wave, "chance": torch.rand(2, 4), "step": step}


@pytest.mark.parametrize("samples", [1600, 6400, 6401])
def test_one_frame_for_each_of_the_codec(names, samples):
    wave = torch.randn(2, samples)
    for name, layer in (("encoder", None), ("encoder", 0), ("encoder", 2), ("encoder", "avg"), ("units", None)):
        target = Teacher(names[name], layer, codec(16000))(wave)
        assert target.shape[:2] == (2, -(-samples // 320))
        assert not target.requires_grad


def test_avg_is_the_mean_of_all_layers_and_units_are_those_of_encode(names):
    wave = torch.randn(2, 3200)
    layers = [Teacher(names["encoder"], layer, codec(16000))(wave) for layer in range(4)]
    avg = Teacher(names["encoder"], "avg", codec(16000))(wave)
    assert torch.allclose(avg, torch.stack(layers).mean(0), atol=1e-6)
    units = senone.load(names["units"])
    codes = units.encode([senone.Audio(row[None], 16000) for row in wave]).data[:, 0]
    assert torch.equal(Teacher(names["units"], None, codec(16000))(wave), codes)


def test_a_codec_at_another_rate_hears_the_same_teacher(names):
    def tones(rate):  # whole periods in a second
        t = torch.arange(rate, dtype=torch.float64) / rate
        return sum(torch.sin(2 * torch.pi * hertz * t)[None] for hertz in (100, 700)).float()

    assert torch.allclose(resampled(tones(24000), 16000), tones(16000), atol=1e-4)
    here, there = (Teacher(names["encoder"], 1, codec(rate))(tones(rate)) for rate in (16000, 24000))
    assert torch.allclose(here, there, atol=1e-3)


@pytest.mark.parametrize(
    ("which", "layer", "said"),
    [
        ("mfcc", None, "has 100 frames a second, SoundStream has 50: they must be equal"),
        ("codec", None, "is a SoundStream: an encoder or Units can teach"),
        ("encoder", 4, "layer must be 0 to 3 or avg with teacher '.*', got 4"),
        ("units", 1, "has units of its own layer: leave layer= out"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(names, which, layer, said):
    with pytest.raises(TrainError, match=said):
        Teacher(names[which], layer, codec(16000))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["teacher={encoder}"], "has 8 features: say model.teacher_width=8"),
        (["teacher={units}", "model.teacher_width=8"], "has 5 units: say model.teacher_width=5"),
        (["model.teacher_width=8"], "has a head for a teacher: say teacher=NAME, or model.teacher_width=0"),
        (["perceptual={encoder}"], "perceptual_layers must be some of 0 to 3"),
        (["perceptual={mfcc}", "perceptual_layers=[1]"], "is a MFCC, which has no layers"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(names, more, said):
    with pytest.raises(TrainError, match=said):
        task_of(*(each.format(**names) for each in more))


def test_a_codec_that_takes_no_target_refuses_a_teacher(names):
    recipe = recipe_for("soundstream", soundstream.SoundStream, [*settings(), f"teacher={names['encoder']}"])
    with pytest.raises(TrainError, match="SoundStream learns from no teacher: leave teacher= out"):
        CodecTask(soundstream.SoundStream(recipe.model), recipe)


@pytest.mark.parametrize(("which", "width"), [("encoder", 8), ("units", 5)])
def test_the_loss_reaches_the_codec_and_nothing_of_the_teacher_is_kept(names, which, width):
    task = task_of(f"teacher={names[which]}", f"model.teacher_width={width}", "weights.distill=3")
    losses = task.losses(batch_of(), "generator")
    losses["distill"].backward()
    assert task.model.encoder[0].weight.grad.any()
    assert task.players.keys() == {"generator"} and not [k for k in task.model.state_dict() if "teacher" in k]
    assert all(value.grad is None for value in task.teacher.model.parameters())


def test_the_perceptual_phase_begins_late_and_its_gradient_passes_through(names):
    more = [f"perceptual={names['encoder']}", "perceptual_layers=[0, 2, 3]", "perceptual_from=4"]
    task = task_of(*more)
    assert "perceptual" not in task.losses(batch_of(step=3), "generator")
    loss = task.losses(batch_of(step=4), "generator")["perceptual"]
    loss.backward()
    assert task.model.encoder[0].weight.grad.any()
    compare = Perceptual(names["encoder"], (0, 2, 3), task.model)
    wave, other = torch.randn(2, 3200), torch.randn(2, 3200, requires_grad=True)
    assert compare(wave, wave).item() == 0
    got = compare(wave, other)
    model = senone.load(names["encoder"])
    apart = [model.features(wave, layer=k) - model.features(other.detach(), layer=k) for k in (0, 2, 3)]
    assert got.item() == pytest.approx(float(sum(x.square().mean() for x in apart) / 3), rel=1e-4)
    got.backward()
    assert other.grad.any()


def test_a_relative_perceptual_loss_counts_every_channel_by_its_own_variance(names):
    compare = Perceptual(names["encoder"], (2,), task_of().model, relative=True)
    model, wave, other = senone.load(names["encoder"]), torch.randn(2, 3200), torch.randn(2, 3200)
    truth, said = (model.features(x, layer=2) for x in (wave, other))
    shares = ((said - truth).square().mean((0, 1)) / truth.var((0, 1))).mean()
    assert compare(wave, other).item() == pytest.approx(shares.item(), rel=1e-3)
    block = compare.model.encoder.layers[1]
    louder = block.register_forward_hook(lambda _, given, out: out * torch.logspace(0, 1, out.shape[2]))
    assert compare(wave, other).item() == pytest.approx(shares.item(), rel=1e-2)
    louder.remove()
    task = task_of(f"perceptual={names['encoder']}", "perceptual_layers=[2]", "perceptual_relative=true")
    assert task.perceptual.relative


def test_log_mel_counts_loudness_alike_at_all_levels():
    wave = torch.randn(2, 8000)
    loss = spectral.log_mel(2 * wave, wave, 16000, (512, 2048))
    assert loss.item() == pytest.approx(0.6931, abs=1e-3)
    assert spectral.log_mel(wave, wave, 16000, (512,)).item() == 0


@pytest.mark.parametrize("kind", ["stft", "wave", "period", "slim", "scale", "stfts", "spectrogram"])
def test_every_kind_of_discriminator_trains(kind):
    judge = Judge(kind, width=2, n_fft=256, scales=2)
    assert sum(value.numel() for value in judge.build().parameters())
    task = task_of(f"discriminators=[{{kind: {kind}, width: 2, n_fft: 256, scales: 2}}]", "adversarial=least_squares")
    batch = batch_of()
    task.losses(batch, "discriminator")["disc"].backward()
    task.losses(batch, "generator")["adv"].backward()
    assert task.model.encoder[0].weight.grad.any()


def test_sizes_choose_windows_and_periods():
    assert Judge("stfts", 2, sizes=(512, 256)).build().windows == (512, 256)
    assert Judge("slim", 2, sizes=(2, 3)).build().periods == (2, 3)


@pytest.mark.parametrize("sizes", [{"width": 0}, {"n_fft": -1}, {"scales": 0}, {"sizes": (512, 0)}])
def test_a_discriminator_of_nothing_is_refused(sizes):
    with pytest.raises(ConfigError, match=f"{[*sizes][0]}: .* must be 1 or more"):
        Judge("stfts", **sizes).build()


def test_the_example_makes_whisper_a_teacher(tmp_path, monkeypatch):
    sizes = {"n_mels": 80, "n_vocab": 8, "n_audio_ctx": 40, "n_audio_state": 8, "n_audio_head": 2, "n_audio_layer": 2}
    sizes |= {"n_text_ctx": 4, "n_text_state": 8, "n_text_head": 2, "n_text_layer": 1}
    net = Whisper(sizes)
    weights = dict(net.state_dict())
    torch.save({"dims": sizes, "model_state_dict": weights}, tmp_path / "whisper-tiny.en.pt")
    monkeypatch.setenv("SENONE_METRICS", str(tmp_path))
    teacher = Teacher(f"{EXAMPLES / 'whisper_teacher.py'}:WhisperEncoder", 1, codec(16000))
    wave = torch.zeros(1, 16000 // 2)
    wave[0, 5 * 320 + 160] = 1  # the middle of hop 5
    said = teacher(wave)
    assert teacher.width == 8 and said.shape == (1, 25, 8)
    mel = teacher.model.features(wave, layer=0) - teacher.model.features(torch.zeros_like(wave), layer=0)
    assert int(mel.abs().sum(2).argmax()) == 5  # frames stand around the middle of hops
    x, y = (teacher.model(wave, layer=layer) for layer in (2, 3))  # one past the last: what the decoder reads
    theirs = net.decoder.blocks[0].cross_attn.keys(net.encoder.ln_post(x))
    keys, values = (part.transpose(1, 2).flatten(2) for part in theirs)
    values = values - net.decoder.blocks[0].cross_attn.value.bias
    torch.testing.assert_close(y, torch.cat([keys, values], 2))
    assert torch.equal(teacher.model.features(wave), x)
