"""X-codec2 keeps the laws, holds its teacher as it is, learns everywhere else; FSQ and Snake say what they should."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senone
from senone.audio import Audio
from senone.config import ConfigError
from senone.errors import SenoneError
from senone.hub import HubError
from senone.models.hubert import Config as HubertConfig
from senone.models.hubert import Hubert
from senone.models.units import MFCC
from senone.models.xcodec2 import Config, SemanticNet, XCodec2, official
from senone.nn.activation import Snake, SnakeBeta
from senone.quantize.fsq import FSQ
from senone.testing import laws

TEACHER = HubertConfig(
    channels=(8,) * 7, width=32, layers=3, heads=2, hidden=32, pos_kernel=4, pos_groups=2, classes=(5,), dropout=0.1
)  # fmt: skip
SMALL = Config(
    channels=2, strides=(4, 4, 4, 5), width=64, layers=1, heads=2, hidden=32, block=0.5, context=0.1, anti_alias=False
)  # fmt: skip


def codec(config: Config = SMALL) -> XCodec2:
    """With vectors that reach many codes."""
    model = XCodec2.around(Hubert(TEACHER).eval(), config, layer=2).eval()
    enter = model.quantizer.enter
    with torch.no_grad():
        y = enter(model.vectors(torch.randn(1, 1, 16000))[0].T)
        enter.weight.div_(y.std(0)[:, None])
        enter.bias.copy_((enter.bias - y.mean(0)) / y.std(0))
    return model


def test_it_keeps_the_laws():
    told = {law.name: law for law in laws(codec(), examples=3)}
    assert not [f"{law.name}: {law.detail}" for law in told.values() if not law.ok]
    out = {name for name, law in told.items() if law.detail.startswith("does not apply")}
    assert out == {"levels", "time"}


@pytest.mark.parametrize("anti_alias", [True, False])
def test_the_encoder_hears_everything_and_gives_a_frame_a_hop(anti_alias):
    model = codec(replace(SMALL, anti_alias=anti_alias))
    for samples in (1, 319, 320, 321, 3200):
        wave = torch.randn(1, samples)
        codes = model.encode(Audio(wave, 16000))
        assert codes.data.shape == (1, 1, -(-samples // 320))
        assert model.decode(codes)[0].wave.shape == (1, samples)
    assert len(model.encode(Audio(torch.randn(1, 16000), 16000)).data.unique()) > 20
    sound = torch.randn(1, 1, 640)
    with torch.no_grad():  # the official frames: one more, where the last one is full
        assert model.vectors(sound).shape[2] == 3 and model.analyse(sound)[0].shape[2] == 2
        assert model.vectors(sound[:, :, :-1]).shape[2] == 2


def test_the_released_sizes():
    with torch.device("meta"):
        model = official()

    def millions(*parts: nn.Module) -> float:
        return round(sum(value.numel() for part in parts for value in part.parameters()) / 1e6, 2)

    assert millions(model.acoustic_encoder) == 38.45  # 38.46 with the norms of weight norm
    assert millions(model.semantic_encoder) == millions(model.semantic_decoder) == 12.58
    assert millions(model.decoder, model.quantizer) == 184.90
    assert millions(model.untaught()) == 629.28  # as transformers counts


class Own(nn.Module):
    """An encoder that senone cannot save."""

    sample_rate, hop, reach, width = 16000, 320, 320, 8

    def features(self, wave, lengths=None, layer=None):
        return wave.unfold(1, 320, 320)[:, :, :8]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"semantic": {"model_type": "senone_bigram"}}, ": a Bigram is no encoder"),
        ({"semantic": {}}, ": unknown model type 'None'"),
        ({"semantic": {"model_type": "senone_hubert", "channels": [-1] * 7}}, " holds a size that cannot be: "),
        ({"strides": [4, 4, 4, 4], "n_fft": 1024}, ": a Hubert gives 50 frames .*, the codec has 62.5"),
        ({"heads": 0}, ": heads: 0 must be 1 or more"),
    ],
)
def test_a_config_that_cannot_be_is_told_with_its_file(change, sentence, tmp_path):
    codec().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(HubError, match=f"{path}{sentence}"):
        senone.load(tmp_path)


def test_around_a_teacher():
    teacher = Hubert(TEACHER).eval()
    model = XCodec2.around(teacher, SMALL, layer=2)
    assert len(model.semantic.encoder.layers) == 2 and not model.semantic.config.classes
    wave = 0.1 * torch.randn(2, 1, 3200)
    side = teacher.reach - teacher.hop
    want = teacher.features(F.pad(wave[:, 0], (side // 2, side // 2)), layer=2)
    assert want.shape[1] == 10
    torch.testing.assert_close(model.semantics(wave), want, rtol=0, atol=1e-4)
    for wrong, layer, sentence in (
        (MFCC(), None, "MFCC gives 100 frames a second of 16000 Hz sound, the codec has 50 of 16000 Hz"),
        (teacher, 4, "layer must be 0 to 3, got 4"),
        (FSQ(4), None, "FSQ is no encoder: it has no features"),
        (Own(), None, "Own cannot be saved in a codec"),
    ):
        with pytest.raises(SenoneError, match=sentence):
            XCodec2.around(wrong, SMALL, layer)


def test_the_teacher_is_never_trained():
    model = codec().train()
    assert model.training and not any(part.training for part in model.semantic.modules())
    wave = 0.1 * torch.randn(2, 1, 3100)
    out = model(wave)
    assert out.wave.shape == wave.shape and out.codes.shape == (2, 1, 10) and set(out.losses) == {"semantic", "spread"}
    (out.losses["semantic"] + out.wave.square().mean()).backward()
    for name, weight in model.named_parameters():
        if name.startswith("semantic."):
            assert weight.grad is None, name
        else:
            assert weight.grad is not None and float(weight.grad.abs().max()) > 0, name
    model.eval()
    wave = F.pad(wave, (0, 100))
    out, said = model(wave), model.semantics(wave)
    z = model.quantizer.decode(out.codes).transpose(1, 2)
    guess = model.semantic_decoder(model.leave_semantic(z))
    torch.testing.assert_close(out.losses["semantic"], (guess - said).square().mean())
    smooth = model(wave, quantise=False)
    assert not smooth.codes.numel() and set(smooth.losses) == {"semantic"}


def test_mixed_precision_warns_of_nothing():
    """torch says once in a process that its RMSNorm gets bfloat16 and float32; here warnings are errors."""
    with torch.autocast("cpu", torch.bfloat16):
        out = codec().train()(0.1 * torch.randn(1, 1, 3200))
    (out.losses["semantic"] + out.wave.square().mean()).backward()


def test_without_its_semantic_decoder_it_codes_the_same(tmp_path):
    model, sound = codec(), Audio(torch.randn(1, 5000), 16000)
    small = model.untaught()
    assert not any("semantic_decoder" in name or "leave_semantic" in name for name in small.state_dict())
    again = senone.load(small.save_pretrained(tmp_path))
    codes = model.encode(sound)
    assert torch.equal(again.encode(sound).data, codes.data) and not again.config.teach
    torch.testing.assert_close(again.decode(again.encode(sound))[0].wave, model.decode(codes)[0].wave)
    with pytest.raises(SenoneError, match="format 'onxx'"):
        small.save_pretrained(tmp_path, format="onxx")


@pytest.mark.parametrize(
    "change",
    [{"width": 40}, {"heads": 3}, {"n_fft": 1000}, {"steps": (4, 1)}, {"steps": ()}]
    + [{"channels": 0}, {"n_fft": -1280}, {"width": 0}, {"pad": -1}, {"block": -1.0}, {"context": -1.0}],
)
def test_sizes_that_cannot_be_are_refused(change):
    with pytest.raises(ConfigError, match=f"{'width' if 'heads' in change else [*change][0]}: "):
        XCodec2(replace(SMALL, **change))


def test_the_relu_in_place():
    net, x = SemanticNet(8), torch.randn(2, 20, 8)
    inner = nn.Sequential(nn.ReLU(inplace=True), net.conv1, nn.ReLU(inplace=True), net.conv2)
    with torch.no_grad():  # as published
        y = net.first(x.transpose(1, 2))
        y = inner(y) + y
        torch.testing.assert_close(net(x), net.last(y).transpose(1, 2))


def identity(bounds: int, steps: tuple[int, ...] = (4,) * 8) -> FSQ:
    fsq = FSQ(len(steps), steps, bounds)
    for layer in (fsq.enter, fsq.leave):
        layer.weight.data.copy_(torch.eye(len(steps)))
        layer.bias.data.zero_()
    return fsq.double()


@pytest.mark.parametrize(
    ("bounds", "edges"), [(1, (-1.149, -0.345, 0.459)), (2, (-0.807, -0.243, 0.408))]
)  # fmt: skip
def test_where_fsq_rounds(bounds, edges):
    fsq = identity(bounds)
    for code, values in {0: [-1.0] * 8, 1: [-0.5] + [-1.0] * 7, 4: [-1, -0.5] + [-1.0] * 6, 65535: [0.5] * 8}.items():
        assert fsq.decode(torch.tensor([[[code]]]))[0, :, 0].tolist() == values
    for digit, edge in enumerate(edges):
        z = torch.full((1, 8, 1), -9.0, dtype=torch.float64)
        z[0, 1] = edge - 4e-3
        assert fsq.encode(z).item() == 4 * digit
        z[0, 1] = edge + 4e-3
        assert fsq.encode(z).item() == 4 * (digit + 1)


@pytest.mark.parametrize("steps", [(4,) * 8, (8, 5, 5, 5), (3, 4)])
def test_fsq_is_straight_through_and_reaches_every_digit(steps):
    fsq = identity(2, steps)
    z = (4 * torch.randn(3, len(steps), 400, dtype=torch.float64)).requires_grad_()
    out = fsq(z)
    assert torch.equal(out.codes, fsq.encode(z)) and 0 <= out.codes.min() and out.codes.max() < fsq.sizes[0]
    torch.testing.assert_close(out.z, fsq.decode(out.codes))
    place = 1
    for step in steps:
        assert len((out.codes // place % step).unique()) == step
        place *= step
    (got,) = torch.autograd.grad(out.z.sum(), z)
    bound = fsq._bound(z.transpose(1, 2)) / (z.new_tensor(steps) // 2)
    (want,) = torch.autograd.grad(bound.sum(), z)
    torch.testing.assert_close(got, want)


def test_snakes():
    x = torch.randn(2, 3, 50)
    snake = Snake(3)
    nn.init.uniform_(snake.alpha, 0.5, 2)
    a = snake.alpha[:, None]
    torch.testing.assert_close(snake(x), x + torch.sin(a * x) ** 2 / (a + 1e-9))
    plain = SnakeBeta(3, anti_alias=False)
    nn.init.normal_(plain.alpha)
    nn.init.normal_(plain.beta)
    y = x.transpose(1, 2)
    torch.testing.assert_close(plain(y), y + (plain.alpha.exp() * y).sin() ** 2 / plain.beta.exp())


def test_filters_keep_overtones_from_folding_back():
    """A tone at 0.4 of the rate: its double is at 0.8, beyond half the rate, and folds back to 0.2."""
    tone = 0.5 * torch.sin(2 * torch.pi * 0.4 * torch.arange(1000))[None, :, None]
    folded = []
    for anti_alias in (True, False):
        with torch.no_grad():
            spectrum = torch.fft.rfft(SnakeBeta(1, anti_alias)(tone)[0, :, 0]).abs()
        assert spectrum[400] > 100
        folded.append(float(spectrum[200]))
    assert folded[1] > 2.5 * folded[0]  # 12 taps are few
