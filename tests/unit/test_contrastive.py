"""The Gumbel quantizer and the contrastive loss, against their definitions."""

import math

import pytest
import torch
from torch.nn import functional as F

from senone.loss.contrastive import distractors, info_nce
from senone.models.wav2vec2 import Config, Wav2Vec2
from senone.quantize.gumbel import GumbelQuantizer, diversity, gumbel, perplexity, temperature


def test_distractors_are_other_masked_frames_of_the_row():
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[0, [1, 4, 5, 9]] = mask[1, [0, 11]] = mask[2, 2:9] = True
    rows = torch.arange(3)[:, None].expand_as(mask)[mask]
    drawn = distractors(mask, 4000)
    assert drawn.shape == (13, 4000)
    for frame in range(13):
        others = [i for i in range(13) if rows[i] == rows[frame] and i != frame]
        values, counts = drawn[frame].unique(return_counts=True)
        assert values.tolist() == others
        assert torch.allclose(counts / 4000, torch.full_like(counts / 4000, 1 / len(others)), atol=0.04)


def test_a_frame_alone_gets_itself_and_none_gives_nothing():
    mask = torch.tensor([[False, True, False], [True, True, False]])
    assert distractors(mask, 5).tolist() == [[0] * 5, [2] * 5, [1] * 5]
    assert distractors(torch.zeros(2, 3, dtype=torch.bool), 5).shape == (0, 5)


def test_distractors_are_a_function_of_the_generator():
    mask = torch.rand(4, 50) < 0.5
    draws = [distractors(mask, 10, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_info_nce_is_its_formula():
    context, target = torch.randn(5, 8), torch.randn(5, 8)
    target[3] = target[1]
    codes = torch.tensor([[0, 1, 2, 1, 3], [5, 5, 5, 5, 5]])
    negatives = torch.tensor([[1, 2, 3], [0, 3, 4], [0, 0, 1], [1, 1, 1], [3, 2, 2]])
    expected, hits = 0.0, 0
    for t in range(5):
        wrong = [int(n) for n in negatives[t] if not torch.equal(codes[:, n], codes[:, t])]
        cosines = [float(F.cosine_similarity(context[t], target[n], dim=0)) for n in [t, *wrong]]
        expected -= math.log(math.exp(cosines[0] / 0.1) / sum(math.exp(c / 0.1) for c in cosines))
        hits += all(cosines[0] > c for c in cosines[1:])
    got = info_nce(context, target, negatives, codes)
    assert got.loss.item() == pytest.approx(expected, rel=1e-5)
    assert got.correct.item() == hits
    assert got.same.item() == pytest.approx(1 / 3 + 1)  # one of frame 1, all of frame 3


def test_info_nce_stays_in_single_precision():
    context, target = torch.randn(40, 8), torch.randn(40, 8)
    negatives, codes = torch.randint(40, (40, 10)), torch.arange(40)[None]
    plain = info_nce(context, target, negatives, codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(context, target, negatives, codes).loss, plain.loss)


def test_an_untold_frame_costs_log_k():
    """Context that is orthogonal to everything cannot tell: K distractors and the target are alike."""
    target = torch.cat([torch.randn(30, 4), torch.zeros(30, 4)], 1)
    context = target.flip(1)
    negatives = distractors(torch.ones(1, 30, dtype=torch.bool), 100)
    got = info_nce(context, target, negatives, torch.arange(30)[None])
    assert got.loss.item() / 30 == pytest.approx(math.log(101)) and got.correct == 0


def test_gumbel_samples_have_the_logits_odds():
    """At any temperature, entry v is chosen with probability softmax(logits)_v."""
    quantizer = GumbelQuantizer(3, 4, 2, 5).train()
    x = torch.randn(1, 1, 3).expand(1, 20000, 3)
    expected = quantizer(x[:, :1]).usage
    for tau in (0.3, 2.0):
        got = quantizer(x, tau)
        assert torch.allclose(got.counts, expected, atol=0.015)
        assert torch.allclose(got.usage, expected, atol=1e-5)
        assert torch.equal(quantizer.decode(got.codes), got.vectors)


def test_evaluation_takes_the_most_likely_entry():
    quantizer = GumbelQuantizer(6, 8, 2, 5).eval()
    x = torch.randn(2, 7, 6)
    got = quantizer(x, 0.1)
    logits = quantizer.weight_proj(x).view(2, 7, 2, 5)
    assert torch.equal(got.codes, logits.argmax(-1).transpose(1, 2)) and torch.equal(got.codes, quantizer.encode(x))
    assert torch.equal(got.vectors, quantizer.decode(got.codes))
    first = quantizer.codevectors[0, got.codes[1, 0, 3]]
    second = quantizer.codevectors[0, 5 + got.codes[1, 1, 3]]
    assert torch.equal(got.vectors[1, 3], torch.cat([first, second]))


def test_the_sample_has_the_gradient_of_the_soft_choice():
    quantizer = GumbelQuantizer(6, 8, 2, 5).train()
    x = torch.randn(1, 9, 6)
    weight = torch.randn(1, 9, 8)
    noise = gumbel((1, 9, 2, 5), x.device, torch.Generator().manual_seed(1))
    (quantizer(x, 0.7, noise=noise).vectors * weight).sum().backward()
    logits = quantizer.weight_proj(x).view(1, 9, 2, 5)
    soft = ((logits + noise) / 0.7).softmax(-1)
    vectors = torch.einsum("btge,ged->btgd", soft, quantizer.codevectors.detach().view(2, 5, 4)).flatten(2)
    (expected,) = torch.autograd.grad((vectors * weight).sum(), quantizer.weight_proj.weight)
    assert torch.allclose(quantizer.weight_proj.weight.grad, expected, atol=1e-5)


def test_usage_and_counts_are_of_masked_frames():
    quantizer = GumbelQuantizer(6, 8, 2, 5).eval()
    x, mask = torch.randn(2, 7, 6), torch.rand(2, 7) < 0.5
    some, alone = quantizer(x, mask=mask), quantizer(x[mask][None])
    assert torch.allclose(some.usage, alone.usage) and torch.allclose(some.counts, alone.counts)


def test_perplexity_and_diversity_at_their_ends():
    even, single = torch.full((2, 320), 1 / 320), F.one_hot(torch.tensor([3, 9]), 320).float()
    assert perplexity(even).item() == pytest.approx(640, rel=1e-4) and diversity(even).item() == pytest.approx(
        0, abs=1e-4
    )
    assert perplexity(single).item() == pytest.approx(2) and diversity(single).item() == pytest.approx(638 / 640)
    single.requires_grad_()
    diversity(single).backward()
    assert bool(torch.isfinite(single.grad).all())


def test_temperature_reaches_its_floor_when_the_paper_says():
    assert temperature(0) == 2 and temperature(1) == 2 * 0.999995
    assert temperature(277_258) > 0.5 == temperature(277_259)
    assert temperature(599_144, stop=0.1) > 0.1 == temperature(599_145, stop=0.1)


def test_the_encoder_alone_has_no_heads(tmp_path):
    sizes = {"channels": (8,) * 7, "width": 16, "layers": 1, "heads": 2, "hidden": 16, "pos_kernel": 4, "pos_groups": 2}
    whole, alone = Wav2Vec2(Config(**sizes, code_dim=8, dim=8)), Wav2Vec2(Config(**sizes, entries=0))
    heads = {name.split(".")[0] for name in whole.state_dict().keys() - alone.state_dict().keys()}
    assert heads == {"quantizer", "project_hid", "project_q"}
    whole.save_pretrained(tmp_path)
    again, wave = Wav2Vec2.from_pretrained(tmp_path), torch.randn(1, 1200)
    assert again.config == whole.config and torch.equal(again.features(wave), whole.eval().features(wave))


def test_gradients_reach_every_parameter_of_the_model():
    sizes = {"channels": (8,) * 7, "width": 16, "layers": 1, "heads": 2, "hidden": 16, "pos_kernel": 4, "pos_groups": 2}
    model = Wav2Vec2(Config(**sizes, entries=6, code_dim=8, dim=8, layer_drop=0.0)).train()
    wave = torch.randn(2, 8000)
    mask = torch.zeros(2, model.frames(8000), dtype=torch.bool)
    mask[0, 3:13] = mask[1, 8:20] = True
    got = model.pretrain(wave, mask, negatives=10)
    assert got.count == 22 and got.usage.shape == (2, 6)
    (got.loss + diversity(got.usage) + got.penalty).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []
