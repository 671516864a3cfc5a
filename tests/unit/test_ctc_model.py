"""The recogniser: transformers computes the same, a row of a batch equals itself alone, bad encoders are refused."""

import pytest
import torch
import transformers

from senone import config as configs
from senone import hub
from senone.config import ConfigError
from senone.hub import HubError
from senone.models import hubert, soundstream
from senone.models.ctc import ENGLISH, Config, Recogniser, ctc_loss
from senone.nn.encoder import EncoderError

TINY = {
    "channels": [8, 8, 8], "kernels": [10, 3, 2], "strides": [8, 5, 4], "width": 16, "layers": 2, "heads": 2,
    "hidden": 24, "pos_kernel": 8, "pos_groups": 2,
}  # fmt: skip
NORMS = {"group/post": ("group", "post"), "layer/pre": ("layer", "pre")}


def tiny(**changes) -> Recogniser:
    torch.manual_seed(0)
    return Recogniser(Config({"model_type": "senone_hubert", **TINY, **changes})).eval()


def theirs(model: Recogniser, kind: str):
    """Transformers' recogniser with the weights of ours."""
    c = model.encoder.config
    sizes = {"hidden_size": c.width, "num_hidden_layers": c.layers, "num_attention_heads": c.heads}
    convolutions = {"conv_dim": c.channels, "conv_kernel": c.kernels, "conv_stride": c.strides}
    position = {"num_conv_pos_embeddings": c.pos_kernel, "num_conv_pos_embedding_groups": c.pos_groups}
    switches = {"feat_extract_norm": c.feat_norm, "do_stable_layer_norm": c.ln_position == "pre"}
    settings = {**sizes, **convolutions, **position, **switches, "intermediate_size": c.hidden, "pad_token_id": 0}
    settings["conv_bias"] = c.conv_bias
    name = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2"}[kind]
    config = getattr(transformers, f"{name}Config")(vocab_size=len(ENGLISH), ctc_zero_infinity=True, **settings)
    net = getattr(transformers, f"{name}ForCTC")(config).eval()
    weights = {k.replace("encoder.", f"{kind}.", 1): v for k, v in model.state_dict().items()}
    new = [("conv.weight_g", "conv.parametrizations.weight.original0")]
    new += [("conv.weight_v", "conv.parametrizations.weight.original1")]
    for old, now in new:
        weights = {k.replace(old, now): v for k, v in weights.items()}
    net.load_state_dict(weights)
    return net


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
@pytest.mark.parametrize("norms", NORMS)
@torch.no_grad()
def test_logits_and_loss_are_those_of_transformers(kind, norms):
    norm, position = NORMS[norms]
    model = tiny(feat_norm=norm, ln_position=position, conv_bias=norm == "layer", padding="none")
    net = theirs(model, kind)
    wave, targets = torch.randn(2, 6000) * 0.1, torch.randint(4, 32, (2, 9))
    sizes = torch.tensor([9, 6])
    loss = net(wave, labels=targets.where(torch.arange(9) < sizes[:, None], -100))
    logits = model.logits(wave)
    frames = torch.full((2,), model.encoder.frames(6000))
    assert (logits - loss.logits).abs().max() < 1e-5
    assert float(ctc_loss(logits, frames, targets, sizes).sum()) == pytest.approx(float(loss.loss), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("norms", NORMS)
@torch.no_grad()
def test_a_row_of_a_batch_equals_itself_alone(norms):
    model = tiny(feat_norm=NORMS[norms][0], ln_position=NORMS[norms][1])
    lengths, targets = torch.tensor([6000, 3217, 4000]), torch.randint(4, 32, (3, 5))
    wave = torch.randn(3, 6000) * (torch.arange(6000) < lengths[:, None]) * 0.1
    logits, frames = model.logits(wave, lengths), model.encoder.frames(lengths)
    losses = ctc_loss(logits, frames, targets, torch.full((3,), 5))
    for i, n in enumerate(lengths.tolist()):
        alone = model.logits(wave[i : i + 1, :n])
        assert (logits[i, : alone.shape[1]] - alone[0]).abs().max() < 1e-5
        loss = ctc_loss(alone, frames[i : i + 1], targets[i : i + 1], torch.tensor([5]))
        assert float(losses[i]) == pytest.approx(float(loss), abs=1e-4)


def test_text_that_cannot_fit_costs_nothing_and_teaches_nothing():
    logits = torch.randn(1, 3, 32, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([3]), torch.tensor([[5, 6, 7, 8]]), torch.tensor([4]))
    loss.sum().backward()
    assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()


def test_frozen_only_the_head_learns_and_else_all_but_the_convolutions():
    for frozen in (True, False):
        model = tiny(feature_grad=0.0, layer_drop=0.0).train()
        model.logits(torch.randn(1, 4000), frozen=frozen).square().sum().backward()
        learn = {name for name, weight in model.named_parameters() if weight.grad is not None}
        rest = {name for name, _ in model.named_parameters() if name not in learn}
        assert learn >= {"lm_head.weight", "lm_head.bias"}
        assert (len(learn) == 2) == frozen
        assert all("feature_extractor" in name or "masked_spec" in name for name in rest) != frozen


def test_around_a_pretrained_encoder_and_saved(tmp_path):
    torch.manual_seed(1)
    encoder = hubert.Hubert(configs.from_dict(hubert.Config, {**TINY, "classes": [5]}))
    model = Recogniser.around(encoder, ("<pad>", "|", "A"), {"layer_drop": 0.0}).eval()
    wave = torch.randn(1, 3000)
    expected = encoder.eval().features(wave)
    assert torch.equal(model.encoder.features(wave), expected)
    assert "final_proj.weight" not in model.encoder.state_dict() and model.encoder.config.layer_drop == 0
    again = hub.load(model.save_pretrained(tmp_path))
    assert again.config == model.config and torch.equal(again(wave), model(wave))


def test_what_is_refused():
    with pytest.raises(HubError, match="needs a wav2vec2 or a hubert, not a SoundStream"):
        Recogniser(Config({"model_type": "senone_soundstream"}))
    with pytest.raises(HubError, match="not a SoundStream"):
        Recogniser.around(soundstream.SoundStream(soundstream.Config(encoder_filters=2, decoder_filters=2, dim=8)))  # type: ignore[arg-type]
    with pytest.raises(HubError, match="unknown model type 'None'"):
        Recogniser(Config({}))
    with pytest.raises(ConfigError, match="unknown config key 'encoder.widht'; did you mean 'width'"):
        tiny(widht=3)
    with pytest.raises(EncoderError, match="audio of 60 samples is too short"):
        tiny().logits(torch.zeros(1, 60))
