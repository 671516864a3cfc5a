"""transformers' w2v-BERT is the oracle of ours: front end, every layer, names and shapes of all weights."""

import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

from senone.config import ConfigError
from senone.models.w2vbert import Config, W2vBert, w2vbert_2
from senone.nn import conformer
from senone.nn.encoder import EncoderError

TINY = Config(width=32, layers=3, heads=4, hidden=48, kernel=5, left=6, right=3)


def theirs(config: Config) -> Wav2Vec2BertModel:
    return Wav2Vec2BertModel(
        Wav2Vec2BertConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.hidden,
            conv_depthwise_kernel_size=config.kernel,
            left_max_position_embeddings=config.left,
            right_max_position_embeddings=config.right,
            feature_projection_input_dim=2 * config.mels,
        )
    ).eval()


@pytest.fixture
def pair() -> tuple[W2vBert, Wav2Vec2BertModel]:
    """Ours and theirs with the same random weights, none of them small or zero."""
    model, oracle = W2vBert(TINY).eval(), theirs(TINY)
    with torch.no_grad():
        for weight in oracle.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + (weight.ndim == 1) * 0.5)
    model.load_state_dict(oracle.state_dict(), strict=True)
    return model, oracle


def speech(samples: int, seed: int = 0) -> torch.Tensor:
    """Chirp and noise, with a stretch of digital silence: (samples,)."""
    t = torch.arange(samples) / 16000
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    wave = 0.3 * torch.sin(2 * torch.pi * (200 + 300 * seed + 900 * t) * t) + 0.02 * noise
    wave[samples // 3 : samples // 2] = 0
    return wave


def batch(*lengths: int, filler: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    wave = torch.full((len(lengths), max(lengths)), filler)
    for i, samples in enumerate(lengths):
        wave[i, :samples] = speech(samples, i)
    return wave, torch.tensor(lengths)


def apart(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == oracle.shape
    return float((ours - oracle).abs().max() / oracle.abs().max())


@pytest.mark.parametrize("lengths", [(16000,), (16160,), (560,), (20000, 12345, 2719)])
def test_the_front_end_is_theirs(lengths: tuple[int, ...]):
    wave, count = batch(*lengths)
    rows = [row[:samples].numpy() for row, samples in zip(wave, lengths, strict=True)]
    expected = SeamlessM4TFeatureExtractor()(rows, sampling_rate=16000, return_tensors="pt")
    model = W2vBert(TINY)
    ours = model.filter_bank(wave, count)
    frames = model.frames(count)
    assert expected["attention_mask"].sum(1).tolist() == frames.tolist() and ours.shape[1] == frames.max()
    for x, y, n in zip(ours, expected["input_features"], frames.tolist(), strict=True):
        # two frames that hardly differ: what is left is the rounding of their logarithms, in single precision
        assert apart(x[:n], y[:n]) < (1e-5 if n > 1 else 1e-4)


@pytest.mark.parametrize("lengths", [(16160,), (20000, 12345, 2719)])
def test_every_layer_is_theirs(pair, lengths: tuple[int, ...]):
    model, oracle = pair
    wave, count = batch(*lengths)
    rows = [row[:samples].numpy() for row, samples in zip(wave, lengths, strict=True)]
    with torch.no_grad():
        inputs = SeamlessM4TFeatureExtractor()(rows, sampling_rate=16000, return_tensors="pt")
        expected = oracle(**inputs, output_hidden_states=True)
        for layer in range(TINY.layers + 1):
            ours = model(wave, count, layer)
            for x, y, n in zip(ours, expected.hidden_states[layer], model.frames(count).tolist(), strict=True):
                assert apart(x[:n], y[:n]) < 1e-5, layer
                assert not x[n:].any()
        assert torch.equal(model(wave, count), model(wave, count, TINY.layers))


def test_the_network_is_theirs_on_the_same_frames(pair):
    model, oracle = pair
    x = torch.randn(2, 40, 160)
    valid = torch.arange(40) < torch.tensor([[40], [23]])
    with torch.no_grad():
        for mask in (None, valid):
            expected = oracle(x, attention_mask=mask).last_hidden_state
            keep = torch.ones(2, 40, dtype=torch.bool) if mask is None else mask
            assert apart(model.encode(x, mask)[keep], expected[keep]) < 1e-5


def test_weights_have_their_names_and_shapes():
    with torch.device("meta"):
        model, oracle = w2vbert_2(), theirs(Config())
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in oracle.state_dict().items()}
    assert len(shapes) == 773
    assert sum(weight.numel() for weight in model.parameters()) == 580_493_120


@pytest.mark.parametrize("way", ["features", "forward"])  # the first goes row by row on a CPU
def test_a_padded_batch_equals_each_alone(pair, way: str):
    model, _ = pair
    wave, lengths = batch(20000, 12345, 719, 560, filler=0.7)  # padding of any content
    wave[2, 10000:] = torch.nan
    with torch.no_grad():
        together = getattr(model, way)(wave, lengths)
        for row, samples, features in zip(wave, lengths.tolist(), together, strict=True):
            alone = model.features(row[None, :samples])[0]
            assert len(alone) == model.frames(samples)
            torch.testing.assert_close(features[: len(alone)], alone, rtol=0, atol=1e-5)
            assert not features[len(alone) :].any()


def test_silence_is_no_louder_in_a_batch(pair):
    """A bin that stands still has variance 0: rounding of its mean must not be blown up."""
    model, _ = pair
    wave = torch.cat([torch.zeros(1, 20000), batch(20000)[0]])
    with torch.no_grad():
        together = model(wave, torch.tensor([7777, 20000]))
        torch.testing.assert_close(together[:1, :23], model.features(wave[:1, :7777]), rtol=0, atol=1e-5)


def test_blocks_of_queries_leave_no_trace(pair, monkeypatch):
    model, _ = pair
    wave, lengths = batch(20000, 12345)
    with torch.no_grad():
        whole = model(wave, lengths)
        monkeypatch.setattr(conformer, "SCORES", 2 * TINY.heads * 62 * 7)  # seven queries of 62
        torch.testing.assert_close(model(wave, lengths), whole, rtol=0, atol=1e-5)


def test_forward_has_a_gradient():
    model = W2vBert(TINY)
    model(batch(4000)[0]).square().sum().backward()
    unused = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert unused == ["masked_spec_embed"] and not model.features(batch(4000)[0]).requires_grad


def test_blocks_above_the_layer_do_not_run(pair):
    model, _ = pair
    model.encoder.layers[2].forward = lambda *_: pytest.fail("block 3 ran")
    model.features(batch(4000)[0], layer=2)


def test_frames_are_those_of_features():
    model = W2vBert(TINY)
    assert [model.frames(n) for n in (16000, 16160, 190800)] == [49, 49, 595]
    for samples in (560, 719, 879, 880):
        assert model.features(speech(samples)[None]).shape[1:] == (model.frames(samples), TINY.width)


def test_save_and_load(pair, tmp_path):
    model, _ = pair
    loaded = W2vBert.from_pretrained(model.save_pretrained(tmp_path))
    wave = batch(4000)[0]
    assert loaded.config == TINY and torch.equal(loaded.features(wave), model.features(wave))


@pytest.mark.parametrize(
    "shape, lengths, layer, words",
    [
        ((1, 2, 16000), None, None, "mono"),
        ((16000,), None, None, "mono"),
        ((0, 16000), None, None, "mono"),
        ((1, 559), None, None, "559 samples"),
        ((2, 16000), [16000, 400], None, "400 samples"),
        ((2, 16000), [16001, 900], None, "16001 samples"),
        ((1, 16000), None, 4, "layer must be 0 to 3, got 4"),
        ((1, 16000), None, -1, "got -1"),
    ],
)
def test_bad_input_is_named(shape, lengths, layer, words: str):
    with pytest.raises(EncoderError, match=words):
        W2vBert(TINY).features(torch.zeros(shape), None if lengths is None else torch.tensor(lengths), layer)


def test_a_head_count_that_cannot_be_right():
    with pytest.raises(ConfigError, match="5 do not divide the width 32"):
        W2vBert(Config(width=32, heads=5))
