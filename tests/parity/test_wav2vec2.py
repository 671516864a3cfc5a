"""wav2vec 2.0 against transformers' Wav2Vec2ForPreTraining: names, sizes, and numbers, from copied random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer, _sample_negative_indices

from senone.models.wav2vec2 import Config, Wav2Vec2, base, large_ls960, large_lv60
from senone.nn.mask import keyed, spans
from senone.quantize.gumbel import GumbelQuantizer, diversity, perplexity

MODES = ["group", "layer"]
OLD = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def ours(name):
    """Our name of one of transformers' parameters."""
    name = name.removeprefix("wav2vec2.")
    for new, old in OLD.items():
        name = name.replace(new, old)
    return name


def peer_config(mode, **more):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    codes = {"num_codevectors_per_group": 7, "codevector_dim": 12, "proj_codevector_dim": 10}
    still = {f"{name}_dropout": 0.0 for name in ("hidden", "attention", "activation", "feat_proj", "feat_quantizer")}
    layer = {"feat_extract_norm": mode, "do_stable_layer_norm": mode == "layer", "conv_bias": mode == "layer"}
    return transformers.Wav2Vec2Config(
        conv_dim=(16,) * 7, **sizes, **codes, **still, **layer, **more, layerdrop=0.0, mask_time_prob=0.05
    )


@pytest.fixture(params=MODES)
def pair(request):
    """A small peer, and our model with its weights; dropout off, so that training has only the Gumbel noise."""
    mode = request.param
    peer = transformers.Wav2Vec2ForPreTraining(peer_config(mode)).eval()
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    switches = {"feat_norm": mode, "conv_bias": mode == "layer", "ln_position": "pre" if mode == "layer" else "post"}
    still = {f"{name}dropout": 0.0 for name in ("", "attention_", "input_", "feature_")}
    sizes = {"channels": (16,) * 7, "width": 32, "layers": 2, "heads": 4, "hidden": 48}
    codes = {"entries": 7, "code_dim": 12, "dim": 10, "layer_drop": 0.0, "feature_grad": 1.0}
    model = Wav2Vec2(Config(**switches, **still, **sizes, **codes)).eval()
    model.load_state_dict({ours(name): value for name, value in peer.state_dict().items()})
    return peer, model


def given(model, rows=3, samples=16000):
    """Waves, masks, and distractors both as the peer numbers them (in the batch) and as we do (among the masked)."""
    wave = torch.randn(rows, samples) * 0.1
    frames = model.frames(samples)
    mask = np.stack([spans(frames, 0.065, rng=keyed(0, 0, i)) for i in range(rows)])
    np.random.seed(3)
    theirs = _sample_negative_indices((rows, frames), 20, mask)
    place = np.cumsum(mask.ravel()) - 1
    return wave, torch.from_numpy(mask), torch.from_numpy(theirs), torch.from_numpy(place[theirs[mask]])


def test_the_contrastive_loss(pair):
    peer, model = pair
    wave, mask, theirs, negatives = given(model)
    with torch.no_grad():
        expected = peer(wave, mask_time_indices=mask, sampled_negative_indices=theirs)
        got = model.pretrain(wave, mask, negatives=negatives)
    assert got.count == mask.sum() and 0 < got.same / got.count < 1  # with 7 entries, some distractors are the target
    assert got.loss.item() == pytest.approx(expected.contrastive_loss.item(), rel=1e-5)
    assert perplexity(got.counts).item() == pytest.approx(expected.codevector_perplexity.item(), rel=1e-5)


def test_the_padded_batch(pair):
    peer, model = pair
    model.config = replace(model.config, padding="fairseq")  # transformers, too, counts padding in the GroupNorm
    wave, mask, _, _ = given(model)
    wave[1, 12000:] = 0
    lengths = torch.tensor([16000, 12000, 16000])
    mask[1, model.frames(12000) :] = False
    theirs = torch.from_numpy(_sample_negative_indices(tuple(mask.shape), 20, mask.numpy()))
    place = mask.flatten().cumsum(0) - 1
    negatives = place[theirs[mask].long()]
    attention = torch.arange(16000) < lengths[:, None]
    with torch.no_grad():
        expected = peer(wave, attention, mask_time_indices=mask, sampled_negative_indices=theirs)
        got = model.pretrain(wave, mask, negatives=negatives, lengths=lengths)
    assert got.loss.item() == pytest.approx(expected.contrastive_loss.item(), rel=1e-5)


def test_the_gradients(pair):
    """Of the contrastive loss, in evaluation mode, in which none passes through the choice of an entry."""
    peer, model = pair
    wave, mask, theirs, negatives = given(model)
    peer(wave, mask_time_indices=mask, sampled_negative_indices=theirs).contrastive_loss.backward()
    model.pretrain(wave, mask, negatives=negatives).loss.backward()
    own = dict(model.named_parameters())
    compared = 0
    for name, parameter in peer.named_parameters():
        if parameter.grad is None or "k_proj.bias" in name:  # the latter: 0 but for rounding
            continue
        apart = (own[ours(name)].grad - parameter.grad).abs().max()
        assert apart < 1e-4 * parameter.grad.abs().max(), name
        compared += 1
    assert compared > 40


def test_the_quantizer_in_training():
    """The same noise gives the same vectors, perplexity, and gradients."""
    config = peer_config("group")
    config.num_codevectors_per_group, config.codevector_dim = 50, 12
    peer = Wav2Vec2GumbelVectorQuantizer(config).train()
    torch.nn.init.uniform_(peer.codevectors)
    own = GumbelQuantizer(16, 12, 2, 50).train()
    own.load_state_dict(peer.state_dict())
    peer.temperature = 1.3
    x, mask = torch.randn(3, 40, 16) * 3, torch.rand(3, 40) < 0.5
    torch.manual_seed(5)
    vectors, expected = peer(x, mask)
    torch.manual_seed(5)
    got = own(x, 1.3, mask)
    assert torch.allclose(got.vectors, vectors, atol=1e-6)
    assert torch.equal(own.decode(got.codes), got.vectors)
    assert perplexity(got.usage).item() == pytest.approx(expected.item(), rel=1e-5)
    assert diversity(got.usage).item() == pytest.approx((100 - expected.item()) / 100, rel=1e-5)
    weights = torch.randn_like(vectors)
    ((vectors * weights).sum() + expected).backward()
    ((got.vectors * weights).sum() + perplexity(got.usage)).backward()
    for (name, a), b in zip(peer.named_parameters(), own.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(
    ("preset", "count", "tensors", "changes"),
    [
        (base, 95_044_608, 218, {}),
        (large_ls960, 317_380_864, None, {"large": True}),
        (large_lv60, 317_390_592, 429, {"large": True, "layer": True}),
    ],
    ids=["base", "large_ls960", "large_lv60"],
)
def test_presets_have_the_peers_names_and_sizes(preset, count, tensors, changes):
    options = {}
    if changes.get("large"):
        options = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        options |= {"codevector_dim": 768, "proj_codevector_dim": 768}
    if changes.get("layer"):
        options |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    with torch.device("meta"):
        model = preset()
        peer = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**options))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {ours(name): tuple(value.shape) for name, value in peer.state_dict().items()}
    assert sum(value.numel() for value in model.parameters()) == count
    assert tensors is None or len(shapes) == tensors
