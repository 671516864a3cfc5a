"""Checkpoints of others: nothing in a file can act, nothing damaged goes in, and what is written down comes back."""

import argparse
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import senone
from senone.audio import Audio
from senone.errors import SenoneError
from senone.interop import InteropError, huggingface, upstream
from senone.interop.verify import verify
from senone.models.ctc import ENGLISH, Recogniser
from senone.models.hubert import Config, Hubert
from senone.models.wav2vec2 import Config as W2vConfig
from senone.models.wav2vec2 import Wav2Vec2

SIZES = {"channels": (16,) * 7, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "pos_kernel": 16, "pos_groups": 4}
LAYER = {"feat_norm": "layer", "conv_bias": True, "ln_position": "pre", "wav_norm": "fairseq"}
NORMS = {"group": {}, "layer": LAYER}
CONVS = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] + [(16,2,2)]"


# fairseq, s3prl, torchaudio: our own weights under their names (specification C2)


def to_fairseq(name: str, layered: bool) -> str:
    pairs = [
        ("masked_spec_embed", "mask_emb"), ("feature_projection.layer_norm", "layer_norm"),
        ("feature_projection.projection", "post_extract_proj"), ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
        (".attention.", ".self_attn."), ("quantizer.codevectors", "quantizer.vars"), ("project_hid", "final_proj"),
        (".feed_forward.intermediate_dense", ".fc1"), (".feed_forward.output_dense", ".fc2"), (".conv.", ".0."),
    ]  # fmt: skip
    if name.startswith("encoder.layers."):
        name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
    if name.startswith("feature_extractor."):
        name = name.replace(".layer_norm.", ".2.1." if layered else ".2.")
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def fairseq(model, prefix: str = "", **changes) -> dict:
    config, weights = model.config, {}
    for name, value in model.state_dict().items():
        if name == "label_embs_concat":
            value = torch.cat([torch.full((4, value.shape[1]), 9.0), value])
        weights[prefix + to_fairseq(name, config.feat_norm == "layer")] = value
    kind = "hubert" if isinstance(model, Hubert) else "wav2vec2"
    settings = {
        "_name": kind, "encoder_attention_heads": config.heads, "layer_norm_first": config.ln_position == "pre",
        "conv_feature_layers": CONVS, "dropout": 0.1, "encoder_layerdrop": 0.05, "dropout_input": 0.1,
        "attention_dropout": 0.1, "activation_dropout": 0.0, "feature_grad_mult": config.feature_grad,
        "latent_groups": 2, **changes,
    }  # fmt: skip
    task = {"normalize": config.wav_norm != "none", "sample_rate": 16000}
    return {"args": None, "cfg": {"model": settings, "task": task, "common": {"seed": 1}}, "model": weights,
            "optimizer_history": [{"num_updates": 3}], "extra_state": {"epoch": 1}}  # fmt: skip


def models(norm: str):
    return (
        Hubert(Config(**SIZES, **NORMS[norm])),
        Hubert(Config(**SIZES, **NORMS[norm], classes=(7,), dim=8)),
        Wav2Vec2(W2vConfig(**SIZES, **NORMS[norm], entries=0)),
        Wav2Vec2(W2vConfig(**SIZES, **NORMS[norm], entries=6, code_dim=8, dim=12)),
    )


def same(a, b) -> None:
    assert type(a) is type(b) and a.config == b.config and not b.training
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
def test_fairseq(norm, tmp_path):
    for model in models(norm):
        path = tmp_path / "x.pt"
        torch.save(fairseq(model), path)
        same(model, senone.load(path))
        same(model, upstream.read(path, heads=4))
        tree = fairseq(model)
        s3prl = {"model_cfg": tree["cfg"]["model"], "task_cfg": tree["cfg"]["task"], "model_weight": tree["model"]}
        torch.save(s3prl | {"dictionaries_symbols": [["<s>", "0"]]}, path, _use_new_zipfile_serialization=False)
        same(model, senone.load(path))
        flat = argparse.Namespace(**tree["cfg"]["model"], **tree["cfg"]["task"], arch=tree["cfg"]["model"]["_name"])
        torch.save({"args": flat, "model": tree["model"]}, path)
        same(model, senone.load(path))


@pytest.mark.parametrize("norm", NORMS)
def test_fairseq_fine_tuned(norm, tmp_path):
    """The encoder's settings are those that it was pre-trained with; the letters are the dictionary's."""
    path = tmp_path / "x.pt"
    for encoder in models(norm)[0], models(norm)[2]:
        head = {"w2v_encoder.proj.weight": torch.randn(32, 32), "w2v_encoder.proj.bias": torch.randn(32)}
        inner = fairseq(encoder, "w2v_encoder.w2v_model.")
        model = {"_name": "wav2vec_ctc", "dropout": 0.0, "layerdrop": 0.1, "w2v_args": inner["cfg"]}
        tree = {"cfg": {"model": model, "task": {"normalize": encoder.config.wav_norm != "none"}}}
        tree |= {"model": inner["model"] | head}
        torch.save(tree, path)
        found = senone.load(path)
        assert isinstance(found, Recogniser) and found.config.vocabulary == ENGLISH
        same(encoder, found.encoder)
        assert torch.equal(found.lm_head.weight, head["w2v_encoder.proj.weight"])
        flat = argparse.Namespace(**inner["cfg"]["model"], **inner["cfg"]["task"], arch=inner["cfg"]["model"]["_name"])
        torch.save({"args": argparse.Namespace(arch="wav2vec_ctc", w2v_args=flat), "model": tree["model"]}, path)
        same(encoder, senone.load(path).encoder)
        tree["cfg"]["model"]["w2v_args"] = None
        torch.save(tree, path)
        with pytest.raises(InteropError, match="x.pt does not say how many heads"):
            senone.load(path)


def test_a_dictionary_in_the_file(tmp_path, monkeypatch):
    """Objects of fairseq and omegaconf are read for their attributes, without fairseq."""
    made = {}
    for name in ("fairseq", "fairseq.data", "omegaconf"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for path in ("fairseq.data.dictionary.Dictionary", "omegaconf.dictconfig.DictConfig", "omegaconf.nodes.AnyNode"):
        name, _, kind = path.rpartition(".")
        module = types.ModuleType(name)
        made[kind] = type(kind, (), {"__module__": name})
        setattr(module, kind, made[kind])
        monkeypatch.setitem(sys.modules, name, module)

    def node(value):
        whole = made["DictConfig" if isinstance(value, dict) else "AnyNode"]()
        whole.__dict__ = {"_metadata": None, "_parent": None}
        content = {key: node(item) for key, item in value.items()} if isinstance(value, dict) else value
        whole.__dict__["_content" if isinstance(value, dict) else "_val"] = content
        return whole

    encoder = models("group")[2]
    tree = fairseq(encoder, "w2v_encoder.w2v_model.")
    cfg = {"model": {"_name": "wav2vec_ctc", "w2v_args": tree["cfg"]}, "task": {"normalize": False}}
    letters = made["Dictionary"]()
    letters.symbols = ["<s>", "<pad>", "</s>", "<unk>", "|", "A"]
    letters.indices = {symbol: i for i, symbol in enumerate(letters.symbols)}
    head = {"w2v_encoder.proj.weight": torch.randn(6, 32), "w2v_encoder.proj.bias": torch.randn(6)}
    torch.save({"cfg": node(cfg), "model": tree["model"] | head, "task_state": {"target_dictionary": letters}},
               tmp_path / "x.pt")  # fmt: skip
    monkeypatch.undo()
    found = senone.load(tmp_path / "x.pt")
    assert found.config.vocabulary == ("<pad>", "<s>", "</s>", "<unk>", "|", "A")
    same(encoder, found.encoder)


@pytest.mark.parametrize("norm", NORMS)
def test_torchaudio(norm, tmp_path):
    path, model = tmp_path / "x.pth", models(norm)[1]
    weights = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ("feature_projection.", "wav2vec2.encoder.feature_projection."),
            ("encoder.", "wav2vec2.encoder.transformer."),
            ("feature_extractor.", "wav2vec2.feature_extractor."),
            ("masked_spec_embed", "mask_generator.mask_embedding"),
            ("final_proj", "logit_generator.final_proj"),
            ("label_embs_concat", "logit_generator.label_embeddings"),
        ):
            if name.startswith(ours):
                name = name.replace(ours, theirs, 1)
                break
        weights[name] = value
    torch.save(weights, path)
    found = upstream.read(path, heads=4)
    same(model, found)
    with pytest.raises(InteropError, match="x.pth does not say how many heads it has.*heads=12"):
        senone.load(path)
    with pytest.raises(InteropError, match="x.pth: 5 heads cannot be right"):
        upstream.read(path, heads=5)
    bare = {name.removeprefix("wav2vec2."): value for name, value in weights.items() if name.startswith("wav2vec2.")}
    head = {"aux.weight": torch.randn(29, 32), "aux.bias": torch.randn(29)}
    torch.save(bare | head, path)
    letters = upstream.read(path, heads=4)
    assert isinstance(letters, Recogniser) and letters.config.vocabulary == ("<pad>", *ENGLISH[4:])
    wave = torch.randn(1, 2000)
    assert torch.equal(letters.encoder.features(wave), model.eval().features(wave))


# Bad files


@pytest.mark.parametrize("new", [True, False])
def test_cut_short(new, tmp_path):
    """At whatever byte a file ends, it is refused; never half a model."""
    path, model = tmp_path / "x.pt", Hubert(Config(**SIZES))
    torch.save(fairseq(model), path, _use_new_zipfile_serialization=new)
    data = path.read_bytes()
    for end in (0, 1, 2, 3, 10, 100, 1000, len(data) // 2, len(data) - 1000, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(SenoneError, match="x.pt"):
            upstream.read(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    return huggingface.save(Hubert(Config(**SIZES)), tmp_path / "hf")


def change(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize("heads", [5, 0, -4, 33, "4", 4.0, None, True])
def test_a_head_count_that_cannot_be_right(heads, folder):
    change(folder, num_attention_heads=heads)
    if heads is True:
        heads = "True"
    with pytest.raises(InteropError, match=f"hf: {heads} heads cannot be right: they do not divide the width 32"):
        senone.load(folder)


def test_the_heads_of_the_papers_tables(tmp_path):
    """They print 8 for BASE; every released file has 12. The config is believed, and the user warned."""
    with torch.device("meta"):
        model = Hubert()
    weights = {name: torch.zeros(value.shape, dtype=torch.float16) for name, value in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "hubert", "num_attention_heads": 8}')
    with pytest.warns(UserWarning, match="says 8 heads; every released encoder of 12 blocks, 768 wide, has 12"):
        assert senone.load(tmp_path).config.heads == 8


def test_missing_unknown_and_misshapen_weights(folder):
    whole = load_file(folder / "model.safetensors")

    def says(sentence, weights):
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(SenoneError, match=sentence):
            senone.load(folder)

    name = "encoder.layers.1.attention.q_proj.weight"
    says(f"hf lacks 1 weights, first '{name}'", {k: v for k, v in whole.items() if k != name})
    says("hf has unknown 1 weights, first 'adapter.weight'", whole | {"adapter.weight": torch.ones(1)})
    says(rf"hf: '{name}' is \(3,\), the config says \(32, 32\)", whole | {name: torch.ones(3)})
    says("hf has unknown 1 weights, first 'quantizer.codevectors'", whole | {"quantizer.codevectors": torch.ones(1)})
    says("hf lacks a weight of the letters", whole | {"lm_head.weight": torch.ones(3, 32)})
    says("3 rows of letters", whole | {"lm_head.weight": torch.ones(3, 32), "lm_head.bias": torch.ones(3)})
    save_file({k: v for k, v in whole.items() if k != "masked_spec_embed"}, folder / "model.safetensors")
    assert not senone.load(folder).masked_spec_embed.any()  # only training needs it
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(InteropError, match="model.safetensors cannot be read"):
        senone.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InteropError, match="neither model.safetensors nor pytorch_model.bin"):
        senone.load(folder)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"num_hidden_layers": 3}, "lacks 16 weights, first 'encoder.layers.2"),
        ({"num_hidden_layers": 10**6}, "too few for 1000000 layers"),
        ({"hidden_size": 64}, "the config says"),
        ({"hidden_size": 2**62}, "width of 4611686018427387904 cannot be"),
        ({"conv_dim": [16] * 6}, "differ in number"),
        ({"conv_stride": [0] * 7}, "strides of 0 cannot be"),
        ({"conv_kernel": "ten"}, "kernels"),
        ({"num_conv_pos_embedding_groups": 5}, "pos_groups"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', but senone's encoder has 'gelu' only"),
        ({"add_adapter": True}, "add_adapter"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps"),
        ({"model_type": "wav2vec3"}, "did you mean 'wav2vec2'"),
    ],
)
def test_a_config_that_does_not_fit(settings, says, folder):
    change(folder, **settings)
    with pytest.raises(SenoneError, match=says) as error:
        senone.load(folder)
    assert "hf" in str(error.value)


def test_the_weights_are_right_where_the_config_is_not(folder):
    """hubert-large's config.json is said to state biases that its convolutions lack."""
    change(folder, conv_bias=True, feat_extract_norm="layer")
    with pytest.warns(UserWarning, match="the weights say .*: they are right"):
        config = senone.load(folder).config
    assert (config.conv_bias, config.feat_norm) == (False, "group")


def test_older_files_of_transformers(folder):
    """Pickles, shards, prefixes, and the first name of the mask vector: all the same model."""
    want, whole = senone.load(folder), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    old = {f"hubert.{name}": value for name, value in whole.items()}
    old["hubert.mask_time_emb_vector"] = old.pop("hubert.masked_spec_embed")
    torch.save(old, folder / "pytorch_model.bin")
    same(want, senone.load(folder))
    (folder / "pytorch_model.bin").unlink()
    names = sorted(whole)
    for i in range(2):
        save_file({name: whole[name] for name in names[i::2]}, folder / f"model-{i}.safetensors")
    index = {"weight_map": {name: f"../hf/model-{i % 2}.safetensors" for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same(want, senone.load(folder))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(InteropError, match="model-1.safetensors cannot be read"):
        senone.load(folder)


def test_whether_the_wave_is_normalised(tmp_path):
    for norm, said, want in (("group", None, "none"), ("group", True, "hf"), ("layer", None, "hf"),
                             ("layer", False, "none"), ("layer", True, "hf")):  # fmt: skip
        folder = huggingface.save(Hubert(Config(**SIZES, **NORMS[norm])), tmp_path / "hf")
        if said is None:
            (folder / "preprocessor_config.json").unlink()
        else:
            (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": said}))
        assert senone.load(folder).config.wav_norm == want


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "x.pt"
    for content, says in (
        (torch.ones(3), "no state dict"), ({"weight": torch.ones(3)}, "its keys are others'"),
        ({"model": {}}, "its keys are others'"),
        ({"model": {"encoder.pos_conv.0.bias": torch.ones(3)}}, "lacks the weight"),
    ):  # fmt: skip
        torch.save(content, path)
        with pytest.raises(InteropError, match=f"x.pt .*{says}"):
            senone.load(path)
    for data in (b"", b"PK", b"text, not a checkpoint", bytes(100)):
        path.write_bytes(data)
        with pytest.raises(InteropError, match="x.pt"):
            senone.load(path)
    with pytest.raises(InteropError, match="cannot read .*no.pt: No such file"):
        upstream.read(tmp_path / "no.pt")
    tree = fairseq(models("group")[0])
    torch.save(tree, path)
    with pytest.raises(InteropError, match="x.pt has 4 heads, as it says itself, not 8"):
        upstream.read(path, heads=8)


# senone verify-checkpoint


@pytest.fixture
def fixture(tmp_path) -> tuple[Path, Path]:
    """A checkpoint and the features that it computes, as fairseq's folder has them."""
    model = models("layer")[0].eval()
    folder = tmp_path / "fixture"
    folder.mkdir()
    Audio(0.1 * torch.randn(1, 8000), 16000).save(folder / "1-2.flac")
    wave = Audio.read(folder / "1-2.flac").wave
    features = model.features(wave, layer=2)[0].numpy()
    np.save(folder / "sample.tiny.L2.npy", features)
    np.save(folder / "sample.other.L2.npy", np.zeros((3, 7), np.float32))
    (folder / "sample.tiny.L2.km3.km").write_text(" ".join(str(i // 8) for i in range(len(features))))
    torch.save(fairseq(model), tmp_path / "x.pt")
    return tmp_path / "x.pt", folder


def test_verify(fixture):
    path, folder = fixture
    found = verify(senone.load(path), folder)
    assert found.ok and found.largest == 0 and found.frames == (24, 24) and found.layer == 2
    assert found.units is not None and found.units[0] == found.units[1]
    model = senone.load(path)
    torch.nn.init.normal_(model.encoder.layers[1].attention.out_proj.weight)
    assert not verify(model, folder).ok
    np.save(folder / "sample.tiny.L2.npy", np.load(folder / "sample.tiny.L2.npy")[:20])
    (folder / "sample.tiny.L2.km3.km").unlink()
    assert not verify(senone.load(path), folder).ok  # equal, but of other length
    (folder / "sample.tiny.L2.npy").write_bytes(b"no array")
    with pytest.raises(InteropError, match="sample.tiny.L2.npy cannot be read"):
        verify(model, folder)
    (folder / "sample.tiny.L2.npy").unlink()
    with pytest.raises(InteropError, match="holds no features 32 wide"):
        verify(model, folder)
