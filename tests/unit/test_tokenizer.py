"""The contract's fine print: ends of recordings, memory, caches, and errors."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from senone import features, hub, tree
from senone.audio import Audio, AudioError
from senone.codes import Codes, CodesError
from senone.hub import user_class
from senone.loss.spectral import multiscale_mel
from senone.quantize.vq import ResidualVQ
from senone.tokenizer import Context
from senone.tree import TreeError

MyCodec = user_class(f"{Path(__file__).parents[2]}/examples/mycodec.py:MyCodec")
HOP, RATE = 20, 1000


def codec(**attributes):
    model = MyCodec(MyCodec.Config(sample_rate=RATE, hop=HOP, dim=8, levels=2)).eval()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


class Window(MyCodec):
    """Sees two frames either way."""

    def __init__(self, config=MyCodec.Config(sample_rate=RATE, hop=HOP, dim=8, levels=2)):
        super().__init__(config)
        self.causal, self.context = False, Context(2 * HOP / RATE, 2 * HOP / RATE)
        self.inside, self.outside = nn.Conv1d(1, 8, 5 * HOP, HOP), nn.Conv1d(8, HOP, 5)
        self.longest = 0

    def analyse(self, wave, state=None):
        self.longest = max(self.longest, wave.shape[2])
        return self.inside(nn.functional.pad(wave, (2 * HOP, 2 * HOP))), None

    def synthesise(self, z, state=None):
        return self.outside(nn.functional.pad(z, (2, 2))).transpose(1, 2).reshape(len(z), 1, -1), None


def sound(samples: int) -> Audio:
    return Audio(torch.randn(1, samples) * 0.3, RATE)


def held(state) -> int:
    """Bytes that a state keeps alive: whole storages, not only what its views show."""
    found = []
    tree.walk(state, lambda value: found.append(value.untyped_storage().nbytes()))
    return sum(found)


@pytest.mark.parametrize("model", [codec(), codec(exact=False), Window()])
def test_a_state_does_not_hold_what_went_in(model):
    session = model.stream()
    session.decode(session.encode(sound(4 * HOP).wave))
    few = held(session.state)
    session.decode(session.encode(sound(4000 * HOP).wave))
    assert 0 < held(session.state) <= 2 * few


@pytest.mark.parametrize("model", [codec(exact=False), Window().float()])
def test_a_caller_may_use_a_buffer_again(model):
    model.exact = False
    wave, session, parts = sound(10 * HOP).wave, model.stream(), []
    whole = model.encode(Audio(wave, RATE)).data
    buffer = torch.empty(1, HOP // 2)
    for piece in wave.split(HOP // 2, 1):
        buffer.copy_(piece)
        parts.append(session.encode(buffer).data)
    parts.append(session.encode(buffer[:, :0], last=True).data)
    assert torch.equal(torch.cat(parts, 2), whole)


@pytest.mark.parametrize("model", [codec(), Window()])
@pytest.mark.parametrize("samples", [0, 1, HOP, 3 * HOP, 3 * HOP + 1])
def test_an_ended_session_begins_anew(model, samples):
    """Also where the end brings no samples of its own."""
    session, first, second = model.stream(), sound(samples), sound(5 * HOP + 3)
    codes = [session.encode(first.wave), session.encode(first.wave[:, :0], last=True)]
    for part, last in zip(codes, (False, True), strict=True):
        session.decode(part, last)
    assert session.state == model.stream().state
    again = session.encode(second.wave, last=True)
    assert torch.equal(again.data, model.encode(second).data) and again.samples.tolist() == [5 * HOP + 3]
    torch.testing.assert_close(session.decode(again, last=True).wave, model.decode(again)[0].wave)


def test_a_stream_tells_how_many_samples_its_codes_stand_for():
    session = codec().stream()
    counts = [session.encode(sound(n).wave, last).samples.item() for n, last in ((7, 0), (15, 0), (50, 0), (3, 1))]
    assert counts == [0, 20, 40, 15]


def test_a_session_keeps_its_levels_and_is_saved(tmp_path):
    model, wave = codec(), sound(5 * HOP).wave
    session = model.stream(levels=1)
    session.encode(wave[:, :50])
    session.save(tmp_path / "session")
    again = model.resume(tmp_path / "session")
    assert torch.equal(again.encode(wave[:, 50:]).data, session.encode(wave[:, 50:]).data)
    assert again.levels == 1 and [path.name for path in tmp_path.iterdir()] == ["session"]


def test_sessions_that_cannot_go_on_are_refused(tmp_path):
    model = codec()
    model.stream().save(tmp_path / "session")
    with pytest.raises(CodesError, match="session is of another model"):
        codec().resume(tmp_path / "session")
    with pytest.raises(TreeError, match="gone does not exist"):
        model.resume(tmp_path / "gone")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(TreeError, match="text is not a saved state"):
        model.resume(tmp_path / "text")
    tree.save([1], tmp_path / "other")
    with pytest.raises(TreeError, match="other holds no session"):
        model.resume(tmp_path / "other")
    with pytest.raises(TreeError, match="cannot write"):
        model.stream().save(tmp_path / "no" / "session")


def test_wrong_calls_of_a_stream_are_told():
    model = codec()
    session = model.stream()
    for wave in (torch.zeros(5), torch.zeros(2, 5)):
        with pytest.raises(AudioError, match=r"mono samples of shape \(1, samples\)"):
            session.encode(wave)
    with pytest.raises(CodesError, match="another model"):
        session.decode(codec().encode(sound(5)))
    with pytest.raises(CodesError, match="last=True"):
        session.decode(model.encode(sound(5)))
    with pytest.raises(CodesError, match="one recording, got a batch of 2"):
        session.decode(model.encode([sound(5), sound(5)]))
    with pytest.raises(CodesError, match="levels must be 1 to 2, got 0"):
        model.stream(levels=0)


def test_wrong_audio_is_told():
    model = codec()
    for audio, match in (
        ([], "no audio"),
        (sound(0), "without samples"),
        ([sound(5), sound(0)], "without samples"),
        (Audio(torch.full((1, 5), float("inf")), RATE), "NaN or infinite"),
    ):
        with pytest.raises(AudioError, match=match):
            model.encode(audio)
    with pytest.raises(CodesError, match="MyCodec takes no condition 'denoise'"):
        model.encode(sound(5), denoise=True)


def test_audio_is_mixed_down_and_resampled():
    model, wave = codec(), torch.randn(2, 2000) * 0.1
    codes = model.encode(Audio(wave, 2 * RATE))
    assert codes.samples.tolist() == [1000]
    assert torch.equal(codes.data, model.encode(Audio(wave, 2 * RATE).mono().resample(RATE)).data)


def test_codes_follow_the_weights():
    """The double-precision copy is made anew when a weight changes, and only then."""
    model, audio = codec(), sound(500)
    before, twin = model.encode(audio), model._coder()[0]
    assert model._coder()[0] is twin
    with torch.no_grad():
        model.encoder[0].weight.mul_(-3)
    after = model.encode(audio)
    assert model._coder()[0] is not twin
    assert not torch.equal(after.data, before.data) and after.spec != before.spec
    with pytest.raises(CodesError, match="another model"):
        model.decode(before)


def test_training_mode_does_not_reach_the_codes():
    model = codec()
    model.quantizer = ResidualVQ(8, 4, 2)
    model.encoder.append(nn.Dropout(0.5))
    audio = sound(500)
    codes = model.train().encode(audio)
    assert torch.equal(codes.data, copy.deepcopy(model).eval().encode(audio).data)


def test_long_recordings_are_worked_on_in_blocks():
    model = Window()
    model.exact = False
    model.encode(sound(100 * RATE))
    assert model.longest <= 10 * RATE + 5 * HOP
    model.context = Context(float("inf"), float("inf"))
    model.encode(sound(100 * RATE))
    assert model.longest == 100 * RATE


def test_half_and_autocast_do_not_change_what_is_exact():
    model, audio = codec(), sound(500)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.encode(audio)
    assert torch.equal(inside.data, model.encode(audio).data)


def test_inference_mode_leaves_nothing_that_cannot_be_trained():
    wave = 0.1 * torch.randn(1, 8000)
    features.mel_filters.cache_clear()
    with torch.inference_mode():
        model = hub.load("soundstream-mini")
        whole, session = model.encode(Audio(wave, 16000)), model.stream()
        codes = session.encode(wave, last=True)
        sound = session.decode(codes, last=True)
        model.decode(whole)
        multiscale_mel(wave, wave, 16000, (512,))
    assert torch.equal(whole.data, codes.data)
    assert torch.equal(whole.data, model.encode(Audio(wave, 16000)).data)
    multiscale_mel(model.train()(wave[None], None).wave[:, 0], sound.wave, 16000, (512,)).backward()
    assert all(weight.grad is not None for weight in model.encoder.parameters())


def test_what_leaves_a_session_may_go_where_gradients_are_wanted():
    model, wave = codec(), torch.randn(1, 20 * HOP)
    session = model.stream()
    codes = session.encode(wave)
    sound = session.decode(codes).wave.requires_grad_()
    (nn.Embedding(codes.spec.sizes[0], 1)(codes.data).sum() + sound.square().sum()).backward()
    assert torch.equal(sound.grad, 2 * sound)


def test_trees_come_back_as_they_were(tmp_path):
    state = {"a": [torch.arange(3), (1, 2.5, None)], "b": {"c": True, "d": torch.zeros(0, 2).double()}, "e": "text"}
    tree.save(state, tmp_path / "state")
    back = tree.load(tmp_path / "state")
    assert torch.equal(back["a"][0], state["a"][0]) and back["a"][1] == (1, 2.5, None)
    assert back["b"]["d"].shape == (0, 2) and back["b"]["d"].dtype == torch.double and back["e"] == "text"
    with pytest.raises(TreeError, match="not a set"):
        tree.save({"a": {1}}, tmp_path / "state")
    with pytest.raises(TreeError, match="keys of a state are text, not 3"):
        tree.save({"a": {3: 1}}, tmp_path / "state")


def test_nothing_decodes_to_nothing():
    model = codec()
    empty = Codes(torch.zeros(2, 1, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long), model.spec)
    assert [audio.wave.shape for audio in model.decode(empty)] == [(1, 0), (1, 0)]
