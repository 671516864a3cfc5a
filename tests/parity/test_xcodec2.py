"""X-codec2 against transformers' port, with random weights: the same codes, the same sound; and files both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import senone
from senone.audio import Audio
from senone.errors import SenoneError
from senone.models.hubert import Config, Hubert
from senone.models.xcodec2 import XCodec2
from senone.nn.activation import SnakeBeta

transformers = pytest.importorskip("transformers")
port = pytest.importorskip("transformers.models.xcodec2.modeling_xcodec2")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}
SIZES |= {"num_key_value_heads": 2, "encoder_hidden_size": 8, "quantization_dim": 128}
SEMANTIC = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


@pytest.fixture(scope="module")
def theirs():
    """With weights that make the codes differ, and every term of the net count."""
    torch.manual_seed(1)
    inner = transformers.Wav2Vec2BertConfig(**SEMANTIC)
    model = transformers.Xcodec2Model(transformers.Xcodec2Config(semantic_model_config=inner, **SIZES)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("alpha", "beta", "bias")):
                value.normal_(std=0.3)
            elif "norm" in name:
                value.add_(torch.randn_like(value), alpha=0.2)
            elif not name.startswith("semantic_encoder"):
                value.normal_(std=1.3 * value[0].numel() ** -0.5)
    enter = model.quantizer.project_in
    seen = []
    hook = enter.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    reference(model, sound_of(16_000))
    hook.remove()
    with torch.no_grad():  # digits that are all in use
        enter.weight.div_(seen[0].std(0)[:, None])
        enter.bias.copy_((enter.bias - seen[0].mean(0)) / seen[0].std(0))
    return model


def sound_of(samples):
    """Noise that comes and goes."""
    loud = torch.sin(torch.arange(samples) / 900) ** 2
    return 0.3 * loud * torch.randn(1, samples)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("xcodec2")
    theirs.save_pretrained(path)
    return path


def reference(model, wave):
    """Codes and sound as transformers has them; the features as Seamless' extractor gives them."""
    wave = F.pad(wave, (0, 320 - wave.shape[1] % 320))
    front = transformers.SeamlessM4TFeatureExtractor()
    inputs = front(F.pad(wave[0], (160, 160)).numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        codes = model.encode(wave[:, None], inputs["input_features"]).audio_codes
        return codes, model.decode(codes).audio_values


@pytest.mark.parametrize("samples", [1, 319, 320, 9_000, 16_000])
def test_codes_and_sound_are_transformers(theirs, folder, samples):
    ours = senone.load(folder)
    wave = sound_of(samples)
    codes, sound = reference(theirs, wave)
    with torch.no_grad():
        all_of_them = ours.quantizer.encode(ours.vectors(wave[:, None]))
        assert torch.equal(all_of_them, codes.long())
        got = ours.synthesise(ours.quantizer.decode(all_of_them))[0]
    assert got.shape == sound.shape and (got - sound).abs().max() < 1e-4 * max(1, sound.abs().max())
    assert torch.equal(ours.encode(Audio(wave, 16000)).data, all_of_them[:, :, : -(-samples // 320)])
    if samples > 1000:
        assert len(codes.unique()) > 20 and sound.std() > 0.01


def test_what_we_write_is_what_transformers_opens(theirs, folder, tmp_path):
    ours = senone.load(folder)
    ours.save_pretrained(tmp_path, format="transformers")
    again, loading = transformers.Xcodec2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["hop_length"] == 320


def test_snake_between_its_filters_is_transformers():
    reference = port.Xcodec2AntiAliasedActivation1d(port.Xcodec2SnakeBeta(6)).double()
    torch.nn.init.normal_(reference.act.alpha)
    torch.nn.init.normal_(reference.act.beta)
    ours = SnakeBeta(6).double()
    ours.load_state_dict({"alpha": reference.act.alpha, "beta": reference.act.beta})
    for frames in (1, 2, 5, 63, 500):
        x = torch.randn(2, 6, frames, dtype=torch.float64, requires_grad=True)
        want, got = reference(x), ours(x.transpose(1, 2)).transpose(1, 2)
        assert torch.allclose(got, want, atol=1e-12)
        weight = torch.randn_like(want)
        (a,), (b,) = (torch.autograd.grad((y * weight).sum(), x) for y in (want, got))
        assert torch.allclose(a, b, atol=1e-11)
        with torch.no_grad():  # in pieces, in place
            assert torch.allclose(ours(x.transpose(1, 2)).transpose(1, 2), want, atol=1e-12)


def test_a_damaged_directory_is_one_sentence(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())

    def refused(changed, sentence):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(SenoneError, match=sentence):
            senone.load(tmp_path)

    name = "acoustic_decoder.layers.1.mlp.fc1.weight"
    refused({key: value for key, value in weights.items() if key != name}, f"lacks 1 weights, first '{name}'")
    refused(weights | {"more.weight": torch.zeros(1)}, "has unknown 1 weights, first 'more.weight'")
    refused(weights | {name: torch.zeros(3, 3)}, r"is \(3, 3\), the config says")
    gone = "acoustic_decoder.layers.0.self_attn.q_proj.weight"
    refused({key: value for key, value in weights.items() if key != gone}, f"lacks '{gone}'")
    refused(weights | {gone: torch.zeros(3)}, rf"'{gone}' is \(3,\), the config says \(64, 64\)")
    settings = json.loads((folder / "config.json").read_text())
    for change, sentence in (
        ({"quantization_dim": 100}, "quantization_dim is 100, but the other sizes make it 128"),
        ({"downsampling_ratios": 5}, "holds a size that cannot be"),
        ({"semantic_model_config": settings["semantic_model_config"] | {"num_attention_heads": 0}}, "size that cannot"),
        ({"num_hidden_layers": 10**9}, "weights, too few for 1000000000 layers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        refused(weights, sentence)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SenoneError, match="cannot be read"):
        senone.load(tmp_path)


def test_shards_are_read(theirs, folder, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = senone.load(tmp_path)
    assert again.spec == senone.load(folder).spec
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(SenoneError, match="cannot be read"):
        senone.load(tmp_path)


def test_what_transformers_cannot_hold_is_refused(tmp_path):
    encoder = Hubert(Config(channels=(8,) * 7, width=32, layers=1, heads=2, hidden=32, pos_kernel=4, pos_groups=2))
    config = XCodec2.Config(channels=2, width=32, layers=1, heads=1, hidden=32)
    with pytest.raises(SenoneError, match="w2v-BERT inside, this one a Hubert"):
        XCodec2.around(encoder, config).save_pretrained(tmp_path, format="transformers")
