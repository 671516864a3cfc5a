"""SpeechTokenizer: the laws, what its teacher teaches, how it starts, and swapped levels. Parity is in parity/."""

import json

import pytest
import torch

from senone.audio import Audio
from senone.codes import Codes, CodesError, CodeSpec, swap
from senone.config import ConfigError
from senone.hub import HubError, load
from senone.models.speechtokenizer import Config, SpeechTokenizer, SpeechTokenizerError, turned
from senone.testing import laws
from senone.train import recipe_for

SMALL = Config(
    sample_rate=800, filters=4, strides=(2, 5), dim=12, levels=3, size=16, teacher_width=6, block=0.5, context=0.1
)
HOP = 10


def small(**changes) -> SpeechTokenizer:
    """Random weights, and codebooks that fit the encoder."""
    torch.manual_seed(0)
    model = SpeechTokenizer(Config(**vars(SMALL) | changes))
    for _ in range(3):
        model(speech(4000).view(4, 1, -1))
    return model.eval()


def speech(samples: int) -> torch.Tensor:
    tone = torch.sin(torch.arange(samples) * 0.05)
    loudness = torch.rand(samples // 100 + 1).repeat_interleave(100)[:samples]
    return ((0.3 * tone + 0.1 * torch.randn(samples)) * loudness)[None]


@pytest.mark.parametrize("changes", [{}, {"activation": "snake", "exact": False, "teacher_width": 0}])
def test_the_laws_hold(changes):
    model = small(**changes)
    assert len(model.encode(Audio(speech(4000), 800)).data.unique()) > 10
    results = {law.name: law for law in laws(model, examples=4)}
    assert not [law for law in results.values() if not law.ok]
    assert [name for name, law in results.items() if "does not apply" in law.detail] == ["time"]


def test_a_recording_up_to_a_block_and_its_future_is_one_window():
    model = small(exact=False)
    wave = speech(round(0.6 * 800))
    with torch.no_grad():
        whole = model.quantizer.encode(model.analyse(wave[None])[0])
    assert torch.equal(model.encode(Audio(wave, 800)).data, whole)


def test_every_frame_reaches_every_frame_of_a_window():
    """Through the two ways of the LSTM; and the decoder's goes forward only."""
    model = small().double()
    wave = speech(40 * HOP)[None].double()
    wave.requires_grad = True
    z, _ = model.analyse(wave)
    for frame in (0, 39):
        (grad,) = torch.autograd.grad(z[0, :, frame].sum(), wave, retain_graph=True)
        assert grad[0, 0].view(40, HOP).abs().amax(1).min() > 0
    v = torch.randn(1, 12, 40, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(model.synthesise(v)[0][0, 0, 20 * HOP : 21 * HOP].sum(), v)
    reached = grad[0].abs().amax(0)
    assert reached[:20].min() > 0 and not reached[30:].any()


def test_no_gradient_changes_nothing():
    """Without a gradient, activations are written where the convolution reads them: the values are the same."""
    for act in ("elu", "snake"):
        model = small(activation=act)
        for samples in (1, 7, 30, 401):
            wave = torch.randn(2, 1, samples)
            z, out = model.analyse(wave)[0], model.synthesise(model.analyse(wave)[0])[0]
            with torch.no_grad():
                torch.testing.assert_close(model.analyse(wave)[0], z)
                torch.testing.assert_close(model.synthesise(z)[0], out)


@pytest.mark.parametrize("strides", [(2,), (1, 1, 1), (1, 3), (3, 1, 2), (2, 4, 5)])
@pytest.mark.parametrize("act", ["elu", "snake"])
def test_pieces_change_nothing(strides, act, monkeypatch):
    """What is done in pieces without a gradient, next to the samples, is what the whole gives."""
    from senone.models import speechtokenizer

    monkeypatch.setattr(speechtokenizer, "PIECE", 50)
    model = small(strides=strides, activation=act)
    for batch, samples in ((1, 1007), (3, 640)):
        wave = torch.randn(batch, 1, samples)
        z = model.analyse(wave)[0]
        with torch.no_grad():
            torch.testing.assert_close(model.analyse(wave)[0], z)
            torch.testing.assert_close(model.synthesise(z)[0], torch.enable_grad()(model.synthesise)(z)[0])


def test_up_is_a_transposed_convolution():
    weight, x = torch.randn(3, 2, 10), torch.randn(1, 3, 7)
    full = torch.nn.functional.conv_transpose1d(x, weight, stride=5)
    y = torch.nn.functional.conv1d(torch.nn.functional.pad(x, (1, 1)), turned(weight))  # (1, step*out, 8)
    y = y.view(1, 5, 2, 8).permute(0, 2, 3, 1).flatten(2)
    torch.testing.assert_close(y, full)


def test_it_starts_as_a_transform_codec():
    """A gain and a little noise away from the sound, before any training; with less noise nearly the sound."""
    from senone.models import speechtokenizer

    noise = speechtokenizer.NOISE
    try:
        speechtokenizer.NOISE = 0.001
        model, wave = SpeechTokenizer(Config(filters=4, strides=(2, 4), dim=16)), speech(2000)[None]
    finally:
        speechtokenizer.NOISE = noise
    with torch.no_grad():
        error = (model(wave, quantise=False).wave - wave).square().mean() / wave.square().mean()
    assert error < 0.1


@pytest.mark.parametrize("distill, target", [("d_axis", None), ("t_axis", None), ("d_axis", "units")])
def test_a_teacher_reaches_the_head_and_the_encoder_through_level_1(distill, target):
    model = small(distill=distill).train()
    frames = torch.randint(6, (4, 50)) if target else torch.randn(4, 50, 6)
    out = model(speech(2000).view(4, 1, -1), torch.tensor([1, 2, 3, 3]), target=frames)
    assert out.losses.keys() == {"commit", "distill"} and out.wave.shape == (4, 1, 500)
    out.losses["distill"].backward()
    assert model.transform is not None and model.transform.weight.grad is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())


def test_the_teacher_sees_level_1_alone():
    """The loss is of the first codebook's vectors: it says nothing about the levels above."""
    model, wave = small(), speech(2000).view(4, 1, -1)
    target = torch.randn(4, 50, 6)
    with torch.no_grad():
        one, all_ = (model(wave, levels, target=target).losses["distill"] for levels in (1, 3))
        first = model.quantizer.books[0](model.quantizer.encode(model.analyse(wave)[0], 1)[:, 0])
        assert model.transform is not None
        by_hand = torch.nn.functional.cosine_similarity(model.transform(first), target, dim=1).sigmoid().log().mean()
    assert torch.equal(one, all_)
    torch.testing.assert_close(one, -by_hand)


def test_a_target_that_does_not_fit_is_named():
    wave = speech(500)[None]
    with pytest.raises(SpeechTokenizerError, match="teacher_width is 0"):
        small(teacher_width=0)(wave, target=torch.randn(1, 50, 6))
    with pytest.raises(SpeechTokenizerError, match="features are 7 wide, teacher_width is 6"):
        small()(wave, target=torch.randn(1, 50, 7))


@pytest.mark.parametrize(
    "key, value",
    [("strides", ()), ("strides", (0, 4)), ("filters", 0), ("dim", -1), ("sample_rate", 0), ("block", -1.0),
     ("context", -0.1), ("teacher_width", -1)],
)  # fmt: skip
def test_sizes_that_cannot_be_are_named(key, value, tmp_path):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        SpeechTokenizer(Config(**{key: value}))
    table = {"model_type": "senone_speechtokenizer", key: list(value) if isinstance(value, tuple) else value}
    (tmp_path / "config.json").write_text(json.dumps(table))
    with pytest.raises(HubError, match=f"{tmp_path}/config.json: {key}: "):
        load(tmp_path)


def test_a_block_below_a_frame_is_a_frame():
    model = small(block=0.0)
    assert model.encode(Audio(speech(95), 800)).data.shape == (1, 3, 10)


def test_it_can_be_trained_by_name():
    recipe = recipe_for("speechtokenizer", SpeechTokenizer, ["model.teacher_width=39", "model.activation=snake"])
    assert recipe.model == Config(teacher_width=39, activation="snake")


def codes(*rows: list[int], samples: int, sizes: tuple[int, ...] = (9, 9, 9)) -> Codes:
    return Codes(torch.tensor(rows)[None], torch.tensor([samples]), CodeSpec(800, HOP, sizes, "x"))


def test_swapped_levels_are_the_reference_s_repeated_or_cut():
    source = codes([1, 1, 1], [2, 2, 2], [3, 3, 3], samples=25)
    short, long = codes([4, 5], [6, 7], [0, 8], samples=20), codes([4] * 5, [5] * 5, [6] * 5, samples=50)
    assert swap(source, short).data[0].tolist() == [[1, 1, 1], [6, 7, 6], [0, 8, 0]]
    assert swap(source, long, 3).data[0].tolist() == [[1, 1, 1], [2, 2, 2], [6, 6, 6]]
    assert swap(source, short).samples.tolist() == [25]
    # a frame that the reference fills in part only is not repeated
    assert swap(source, codes([4, 5], [6, 7], [0, 8], samples=11)).data[0].tolist()[1] == [6, 6, 6]
    assert swap(source, codes([4], [6], [0], samples=3)).data[0].tolist()[1] == [6, 6, 6]


def test_what_cannot_be_swapped_is_refused():
    source = codes([1], [2], [3], samples=10)
    for level in (0, 1, 4):
        with pytest.raises(CodesError, match=f"from_level must be 2 to 3, got {level}"):
            swap(source, source, level)
    with pytest.raises(CodesError, match="one level"):
        swap(source.levels(1), source.levels(1))
    with pytest.raises(CodesError, match="different tokenizers"):
        swap(source, codes([1], [2], samples=10, sizes=(9, 9)))
    with pytest.raises(CodesError, match="no frames"):
        swap(source, Codes(source.data[:, :, :0], torch.tensor([0]), source.spec))
