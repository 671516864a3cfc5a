"""The encoders against transformers, on random weights: outputs of every block, and files both ways."""

import json

import pytest
import torch
import transformers
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
)

import senone
from senone.interop import huggingface
from senone.models import hubert, wav2vec2
from senone.models.ctc import Recogniser, ctc_loss
from senone.nn.encoder import SpeechEncoder

transformers.utils.logging.disable_progress_bar()

TINY = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_codevectors_per_group": 6,
    "codevector_dim": 8, "proj_codevector_dim": 12,
}  # fmt: skip
NORMS = {
    "group": {},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "layer-post": {"feat_extract_norm": "layer", "do_stable_layer_norm": False},
}
KINDS = {
    "hubert": (HubertConfig, HubertModel, hubert.Hubert),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model, wav2vec2.Wav2Vec2),
    "pre-training": (Wav2Vec2Config, Wav2Vec2ForPreTraining, wav2vec2.Wav2Vec2),
}


def make(kind: str, norm: str, folder) -> torch.nn.Module:
    """Theirs, with weights far from their start (near which heads and norms hardly matter), saved in `folder`."""
    config, model, _ = KINDS[kind]
    theirs = model(config(**TINY, **NORMS[norm])).eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value += 0.3 * torch.randn_like(value) * value.std(correction=0).clamp_min(0.3)
    theirs.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=norm == "layer").save_pretrained(folder)
    return theirs


@pytest.fixture
def wave() -> torch.Tensor:
    return 0.1 * torch.randn(2, 6000)


def heard(wave: torch.Tensor, folder) -> torch.Tensor:
    """The wave as their feature extractor hands it to their model."""
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    return extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt")["input_values"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_forward_and_every_block(kind, norm, wave, tmp_path):
    theirs = make(kind, norm, tmp_path)
    ours = senone.load(tmp_path)
    assert type(ours) is KINDS[kind][2]
    out = theirs.base_model(heard(wave, tmp_path), output_hidden_states=True)
    torch.testing.assert_close(ours.features(wave), out.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert len(out.hidden_states) == 4
    for layer, states in enumerate(out.hidden_states):
        torch.testing.assert_close(ours.features(wave, layer=layer), states, atol=1e-5, rtol=1e-5)
    assert (out.hidden_states[3] - out.hidden_states[2]).abs().max() > 0.1  # or it would be no test


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_a_wrong_head_count_shows(norm, wave, tmp_path):
    """It fits every weight, and gives other features: why it has to be stated."""
    make("hubert", norm, tmp_path)
    right = senone.load(tmp_path).features(wave)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 8}))
    assert (senone.load(tmp_path).features(wave) - right).abs().max() > 0.01


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_written_for_transformers(kind, norm, new, wave, tmp_path):
    """Theirs -> ours -> theirs: the same class, settings that matter and weights, by either names of weight norm."""
    theirs = make(kind, norm, tmp_path / "a")
    huggingface.save(senone.load(tmp_path / "a"), tmp_path / "b", new_names=new)
    again, report = KINDS[kind][1].from_pretrained(tmp_path / "b", output_loading_info=True)
    assert type(again) is type(theirs) and not any(report.values())
    assert again.config.architectures == theirs.config.architectures
    for key, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    for key in ("hidden_size", "num_attention_heads", "layerdrop", "activation_dropout", "do_stable_layer_norm"):
        assert getattr(again.config, key) == getattr(theirs.config, key)
    x = heard(wave, tmp_path / "a")
    assert torch.equal(heard(wave, tmp_path / "b"), x)
    assert torch.equal(again.eval().base_model(x)[0], theirs.base_model(x)[0])
    ours, back = senone.load(tmp_path / "a"), senone.load(tmp_path / "b")
    assert back.config == ours.config
    assert torch.equal(back.features(wave), ours.features(wave))


@torch.no_grad()
def test_w2vbert(wave, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    theirs = Wav2Vec2BertModel(Wav2Vec2BertConfig(**sizes)).eval()
    theirs.save_pretrained(tmp_path / "a")
    ours = senone.load(tmp_path / "a")
    huggingface.save(ours, tmp_path / "b")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "b")
    again = transformers.AutoModel.from_pretrained(tmp_path / "b").eval()
    assert type(again) is Wav2Vec2BertModel
    inputs = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt")
    frames, valid = inputs["input_features"], inputs["attention_mask"].bool()
    for model in (theirs, again):
        for layer, x in enumerate(model(**inputs, output_hidden_states=True).hidden_states):
            y = ours.encode(frames, valid, layer)
            torch.testing.assert_close(y[valid], x[valid], atol=1e-5, rtol=1e-5)


CTC = {
    "hubert": (HubertConfig, HubertForCTC, hubert.Hubert),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC, wav2vec2.Wav2Vec2),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", CTC)
def test_a_recogniser(kind, norm, wave, tmp_path):
    """Logits, loss and its gradient are theirs; written again, transformers reads the same model and tokenizer."""
    config, model, encoder = CTC[kind]
    words = ["[PAD]", "<s>", "</s>", "[UNK]", "|", *"ABC"]
    blank = 7  # not the first: ours moves it there
    words[0], words[blank] = words[blank], words[0]
    options = {"vocab_size": 8, "pad_token_id": blank, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True}
    theirs = model(config(**TINY | {"hidden_dropout": 0.0}, **NORMS[norm], **options)).eval()
    torch.nn.init.normal_(theirs.lm_head.weight)
    theirs.save_pretrained(tmp_path / "a")
    Wav2Vec2FeatureExtractor(do_normalize=norm != "group").save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "vocab.json").write_text(json.dumps({word: row for row, word in enumerate(words)}))
    ours = senone.load(tmp_path / "a")
    assert type(ours) is Recogniser and type(ours.encoder) is encoder and not ours.training
    assert ours.config.vocabulary == ("<pad>", "C", "<s>", "</s>", "<unk>", "|", "A", "B")
    place = torch.tensor([words.index({"<pad>": "[PAD]", "<unk>": "[UNK]"}.get(x, x)) for x in ours.config.vocabulary])
    labels = torch.tensor([[5, 6, 0, 4, 5], [6, 6, 4, -100, -100]])
    x = heard(wave, tmp_path / "a")
    out = theirs(x, labels=labels)
    logits = ours(wave)
    torch.testing.assert_close(logits, out.logits[:, :, place], atol=1e-5, rtol=1e-5)
    sizes = (labels >= 0).sum(1)
    targets = torch.argsort(place)[labels.clamp_min(0)]
    loss = (ctc_loss(logits, torch.full((2,), logits.shape[1]), targets, sizes) / sizes).mean()
    torch.testing.assert_close(loss, out.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    out.loss.backward()
    mine = ours.encoder.encoder.layers[0].attention.q_proj.weight.grad
    torch.testing.assert_close(
        mine, theirs.base_model.encoder.layers[0].attention.q_proj.weight.grad, atol=1e-5, rtol=1e-4
    )

    huggingface.save(ours, tmp_path / "b")
    again, report = model.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(again.eval()(x).logits[:, :, torch.argsort(place)], out.logits, atol=1e-6, rtol=1e-6)
    assert senone.load(tmp_path / "b").config == ours.config
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "b")
    assert len(processor.tokenizer) == 8
    assert processor.tokenizer("AB C").input_ids == [ours.config.vocabulary.index(letter) for letter in "AB|C"]


def on_meta(build) -> SpeechEncoder:
    with torch.device("meta"):
        return build()


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_sizes_and_keys_of_the_released_models():
    """Parameters as fairseq and transformers count them (specification A4, verified there on both)."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    lv60 = {**large, **NORMS["layer"], "codevector_dim": 768, "proj_codevector_dim": 768}
    xlarge = {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120}
    layer = {**NORMS["layer"], "conv_bias": False}
    head = hubert.Config(classes=(504,))
    for build, count, theirs in (
        (hubert.base, 94_371_712, lambda: HubertModel(HubertConfig())),
        (lambda: hubert.Hubert(head), 94_697_600, None),
        (hubert.large, None, lambda: HubertModel(HubertConfig(**large, **layer))),
        (hubert.xlarge, None, lambda: HubertModel(HubertConfig(**xlarge, **layer))),
        (wav2vec2.base, 95_044_608, lambda: Wav2Vec2ForPreTraining(Wav2Vec2Config())),
        (wav2vec2.large_lv60, 317_390_592, lambda: Wav2Vec2ForPreTraining(Wav2Vec2Config(**lv60))),
    ):
        model = on_meta(build)
        total = sum(value.numel() for value in model.parameters())
        assert count is None or total == count
        if theirs:
            own = huggingface.old_names({huggingface._bare(k): v for k, v in on_meta(theirs).state_dict().items()})
            assert {k: tuple(v.shape) for k, v in own.items()} == shapes(model)
    assert len(shapes(on_meta(wav2vec2.base))) == 218 and len(shapes(on_meta(wav2vec2.large_lv60))) == 429
    assert round(sum(value.numel() for value in on_meta(hubert.xlarge).parameters()) / 1e5) == 9625
    assert sum(value.numel() for value in on_meta(lambda: HubertForCTC(HubertConfig())).parameters()) == 94_396_320
