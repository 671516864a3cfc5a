"""Tokenizers of transformers behind our contract, beside what they compute alone; our codecs in its Auto classes."""

import json
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import senone
from senone import hub
from senone.audio import Audio
from senone.codes import concat
from senone.interop import InteropError
from senone.interop.transformers import Foreign, register
from senone.models.soundstream import Config, SoundStream

pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from ecosystem_laws import TINY, tiny  # noqa: E402

KINDS = tuple(TINY)


@cache
def bare(kind: str):
    return tiny(kind)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A directory of each model, as transformers saves it, made on demand."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            bare(kind).save_pretrained(root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="module")
def load(folders):
    return cache(lambda kind: senone.load(f"hf:{folders(kind)}"))


def sound(samples: int, rate: int, seed: int = 0) -> Audio:
    noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))
    return Audio(0.1 * noise * (torch.arange(samples) / rate * 9).sin(), rate)


@torch.no_grad()
def own(kind: str, wave: torch.Tensor) -> torch.Tensor:
    """The codes of the bare model for (1 samples), through what its own documentation says to call."""
    model, x = bare(kind), wave[None]
    if kind == "encodec":
        return model.encode(x, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0]
    if kind == "mimi":
        return model.encode(x).audio_codes
    if kind == "dac":
        from transformers import DacFeatureExtractor

        hop = model.config.hop_length
        extract = DacFeatureExtractor(sampling_rate=16000, hop_length=hop)
        x = extract(wave[0].numpy(), sampling_rate=16000)["input_values"]
        return model.encode(torch.as_tensor(np.asarray(x)).view(1, 1, -1)).audio_codes
    if kind == "xcodec":
        return model.encode(F.pad(x, (0, -x.shape[2] % 320))).audio_codes
    if kind == "neucodec":
        x = Audio(wave, 24000).resample(16000).wave[None]
    frames = -(-x.shape[2] // 320)
    x = F.pad(F.pad(x, (0, 1)), (0, -(x.shape[2] + 1) % 320))  # their extractors add a sample, then fill up whole hops
    side = 0 if kind == "neucodec" else 160
    features = seamless(F.pad(x[0, 0], (side, side)).numpy())
    return model.encode(x, input_features=features).audio_codes[:, :, :frames]


def seamless(wave: np.ndarray) -> torch.Tensor:
    from transformers import SeamlessM4TFeatureExtractor

    extract = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, sampling_rate=16000, stride=2)
    return extract(wave, sampling_rate=16000, return_tensors="pt", padding=True).input_features


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_the_bare_model(kind, load):
    tokenizer = load(kind)
    rate, hop = tokenizer.sample_rate, tokenizer.hop
    for samples in (20 * hop, 20 * hop + 7, hop):
        if kind == "neucodec" and samples % hop:
            continue  # it leaves out the frame that is not whole, where we fill it up
        audio = sound(samples, rate)
        codes, want = tokenizer.encode(audio), own(kind, audio.wave)
        assert torch.equal(codes.data, want), f"{samples} samples"
        assert codes.samples.tolist() == [samples]
    assert len(codes.data.unique()) > 1 or samples == hop
    assert len(tokenizer.encode(sound(20 * hop, rate)).data[0, -1].unique()) > 2, "codes that differ test something"


@pytest.mark.parametrize("kind", KINDS)
def test_facts_come_from_the_config(kind, load):
    rate, hop, sizes = {
        "encodec": (24000, 320, (64,) * 8),
        "dac": (16000, 320, (64,) * 4),
        "mimi": (24000, 1920, (64,) * 4),
        "xcodec": (16000, 320, (64,) * 4),
        "xcodec2": (16000, 320, (256,)),
        "neucodec": (24000, 480, (256,)),
    }[kind]
    spec = load(kind).spec
    assert (spec.sample_rate, spec.hop, spec.sizes) == (rate, hop, sizes)
    assert load(kind).ragged == (kind in ("encodec", "mimi", "xcodec2"))


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_batches_and_levels(kind, load):
    tokenizer = load(kind)
    rate, hop = tokenizer.sample_rate, tokenizer.hop
    rows = [sound(n, rate, seed) for seed, n in enumerate((1, hop - 1, hop, 12 * hop + 3))]
    together = tokenizer.encode(rows)
    for i, row in enumerate(rows):
        alone = tokenizer.encode(row)
        assert alone.data.shape[2] == -(-row.wave.shape[1] // hop)
        assert torch.equal(together[i].data, alone.data)
        (back,) = tokenizer.decode(alone)
        assert back.wave.shape == row.wave.shape and back.rate == rate
        assert torch.equal(tokenizer.decode(together)[i].wave, back.wave)
    for k in range(1, len(tokenizer.quantizer.sizes) + 1):
        few = tokenizer.encode(rows[3], levels=k)
        assert torch.equal(few.data, together[3].data[:, :k])
        assert torch.isfinite(tokenizer.decode(few)[0].wave).all()
    with torch.no_grad():
        want = tokenizer.sound(together[3].data).flatten()[: 12 * hop + 3]
    have = tokenizer.decode(together)[3].wave[0]
    assert torch.equal(have[: len(want)], want) and not have[len(want) :].any()


@pytest.mark.parametrize("kind", ["encodec", "xcodec2"])
def test_a_stream_in_any_pieces_is_the_whole_in_blocks(kind, load):
    model = load(kind)
    tokenizer = Foreign(replace(model.config, block=0.3, context=0.1), model.model)
    assert tokenizer.latency == pytest.approx(0.5 + tokenizer.hop / tokenizer.sample_rate)
    audio = sound(round(1.1 * tokenizer.sample_rate), tokenizer.sample_rate)
    whole = tokenizer.encode(audio)
    for sizes in (999, 7777):
        stream = tokenizer.stream()
        pieces = audio.wave.split(sizes, 1)
        codes = [stream.encode(piece, last=i == len(pieces) - 1) for i, piece in enumerate(pieces)]
        assert torch.equal(concat(codes).data, whole.data)
        waves = [stream.decode(part, last=i == len(codes) - 1).wave for i, part in enumerate(codes)]
        assert torch.equal(torch.cat(waves, 1), tokenizer.decode(whole)[0].wave)
    # in blocks the model sees less than the whole: the codes are not all its own, but most
    assert 0.5 < float((whole.data == model.encode(audio).data).double().mean()) < 1


@pytest.mark.parametrize("kind", ["dac", "mimi", "neucodec"])
def test_saved_in_our_layout_it_is_the_same(kind, load, tmp_path):
    tokenizer = load(kind)
    again = senone.load(tokenizer.save_pretrained(tmp_path / "ours"))
    audio = sound(5 * tokenizer.hop, tokenizer.sample_rate)
    assert again.spec == tokenizer.spec and torch.equal(again.encode(audio).data, tokenizer.encode(audio).data)
    with torch.no_grad():
        next(again.parameters()).view(-1)[0] += 1
    assert again.spec.fingerprint != tokenizer.spec.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_bare_model_does_by_itself(kind, load):
    found = {finding.law: finding.share for finding in load(kind).bare()}
    assert (found["length"] == 1) == (kind not in ("dac", "xcodec2"))
    assert (found["batch"] == 1) == (kind in ("encodec", "mimi"))
    assert all(0.5 < found[law] for law in ("batch", "chunks")) and found["chunks"] < 1


def test_x_codec2_is_the_same_with_and_without_the_prefix(folders, load):
    """Transformers' net here, our own there."""
    for samples in (6400, 6500):
        audio = sound(samples, 16000)
        assert torch.equal(load("xcodec2").encode(audio).data, senone.load(folders("xcodec2")).encode(audio).data)


def test_settings_that_codes_cannot_keep_are_refused(tmp_path):
    from transformers import EncodecConfig, EncodecModel

    for key, value in {"audio_channels": 2, "normalize": True, "chunk_length_s": 1.0}.items():
        EncodecModel(EncodecConfig(**TINY["encodec"], overlap=0.01, **{key: value})).save_pretrained(tmp_path / key)
        with pytest.raises(InteropError, match=f"EncodecModel has {key} {value}: "):
            senone.load(f"hf:{tmp_path / key}")


def fake(name: str, codes, size: int):
    """A class of transformers whose `encode` gives what `codes(frames)` says."""
    from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

    class FakeConfig(PreTrainedConfig):
        model_type = f"fake-{name}"
        sampling_rate: int = 1000
        hop_length: int = 100
        codebook_size: int = size

    class Fake(PreTrainedModel):
        config_class = FakeConfig

        def __init__(self, config):
            super().__init__(config)
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.post_init()

        def encode(self, input_values):
            return SimpleNamespace(**codes(input_values.shape[2] // 100))

        def decode(self, audio_codes):
            return SimpleNamespace(audio_values=audio_codes[:, 0].float().repeat_interleave(100, 1))

    Fake.__name__ = name
    AutoConfig.register(FakeConfig.model_type, FakeConfig, exist_ok=True)
    AutoModel.register(FakeConfig, Fake, exist_ok=True)
    return Fake(FakeConfig())


def test_a_new_kind_of_tokenizer_works_and_what_is_none_says_why(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    cases = {
        "Plain": lambda n: {"audio_codes": torch.arange(2 * n).view(1, 2, n) % 8},
        "Levelled": lambda n: {"audio_codes": [torch.zeros(1, n // 2), torch.zeros(1, n)]},
        "Latent": lambda n: {"latents": torch.zeros(1, 4, n)},
        "Short": lambda n: {"audio_codes": torch.zeros(1, 2, n - 1)},
        "Sizeless": lambda n: {"audio_codes": torch.zeros(1, 2, n)},
        "Broken": lambda n: 1 / 0,
    }
    for name, codes in cases.items():
        fake(name, codes, size=0 if name == "Sizeless" else 8).save_pretrained(tmp_path / name)
    plain = senone.load(f"hf:{tmp_path}/Plain")
    assert plain.encode(sound(250, 1000)).data.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    for name, match in {
        "Levelled": r"a Levelled has codebooks at several rates \(2, 4 frames\), senone's codes have one",
        "Latent": "a Latent gives no audio_codes: it is no tokenizer of discrete units",
        "Short": "a Short makes 3 frames of 4 hops of 100 samples",
        "Sizeless": "the config of a Sizeless lacks a sample rate, a hop, or the size of a codebook",
        "Broken": "a Broken cannot encode: division by zero",
    }.items():
        with pytest.raises(InteropError, match=match):
            senone.load(f"hf:{tmp_path}/{name}")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    Wav2Vec2Model(Wav2Vec2Config(**small, conv_dim=[4] * 7, num_conv_pos_embedding_groups=1)).save_pretrained(tmp_path)
    with pytest.raises(InteropError, match="a Wav2Vec2Model of transformers has no encode and decode"):
        senone.load(f"hf:{tmp_path}")


def test_damaged_directories_end_in_a_sentence(folders, load, tmp_path):
    from safetensors.torch import load_file, save_file

    good = folders("dac")

    def spoil(name, change, match):
        folder = shutil.copytree(good, tmp_path / name)
        change(folder / "model.safetensors")
        with pytest.raises(InteropError, match=match) as caught:
            senone.load(f"hf:{folder}")
        assert "\n" not in str(caught.value)

    def edit(**changes):
        def change(path):
            weights = load_file(path) | changes
            save_file({k: v for k, v in weights.items() if v is not None}, path, {"format": "pt"})

        return change

    key = "decoder.conv1.bias"
    spoil("cut", lambda path: path.write_bytes(path.read_bytes()[:-1000]), "cut' cannot be loaded: ")
    spoil("gone", lambda path: path.unlink(), "gone' cannot be loaded: ")
    spoil("lacks", edit(**{key: None}), f"lacks 1 weights, first '{key}'")
    spoil("extra", edit(strange=torch.ones(1)), "has unknown 1 weights, first 'strange'")
    spoil("shape", edit(**{key: torch.ones(3)}), rf"shape': '{key}' is \(3,\), the config says \(")
    spoil("pickle", lambda path: path.rename(path.with_name("pytorch_model.bin")), "pickle' cannot be loaded: ")
    bare("dac").save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert senone.load(f"hf:{tmp_path}/shards").spec == load("dac").spec
    shards[0].unlink()
    with pytest.raises(InteropError, match="shards' cannot be loaded: "):
        senone.load(f"hf:{tmp_path}/shards")


def test_names_that_lead_nowhere(folders, monkeypatch, tmp_path):
    with pytest.raises(InteropError, match="'hf:' names nothing"):
        senone.load("hf:")
    with pytest.raises(InteropError, match="'hf:/not/here' is not a directory"):
        senone.load("hf:/not/here")
    with pytest.raises(hub.HubError, match="model type 'mimi'.*load as hf:DIRECTORY"):
        senone.load(folders("mimi"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mimmi"}))
    with pytest.raises(InteropError, match="mimmi"):
        senone.load(f"hf:{tmp_path}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InteropError, match=r"pip install 'senone\[hf\]'"):
        senone.load("hf:kyutai/mimi")


def test_our_codecs_in_the_auto_classes(tmp_path):
    from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization

    register()
    register()
    small = Config(16000, 2, 2, (2, 4, 5, 8), 8, 3, 16)
    SoundStream(small).save_pretrained(tmp_path / "mine")
    folders = [tmp_path / "mine", hub.BUNDLED / "spectral-mini"]
    for auto, folder in zip((AutoModel, AutoModelForAudioTokenization), folders, strict=True):
        model, codec = auto.from_pretrained(folder), senone.load(folder)
        wave = torch.stack([sound(5000, 16000, seed).wave for seed in range(2)])
        mask = (torch.arange(5000) < torch.tensor([[5000], [2100]])).long()
        rows = [Audio(wave[0], 16000), Audio(wave[1, :, :2100], 16000)]
        want = codec.encode(rows)
        coded = model.encode(wave, padding_mask=mask)
        assert torch.equal(coded.audio_codes, want.data) and coded.audio_codes_mask.sum(1).tolist() == [16, 7]
        assert torch.equal(model.encode(wave[:1], num_quantizers=2).audio_codes, want.data[:1, :2])
        heard = codec.decode(want)
        out = model(wave, padding_mask=mask)
        assert torch.equal(out.audio_codes, want.data) and out.audio_values.shape == wave.shape
        assert torch.equal(out.audio_values[0], heard[0].wave)
        assert torch.equal(out.audio_values[1, :, :2100], heard[1].wave) and not out.audio_values[1, :, 2100:].any()
        whole = model.decode(coded.audio_codes[:1]).audio_values
        torch.testing.assert_close(whole[0, :, :5000], heard[0].wave)
        assert whole.shape == (1, 1, 16 * 320)
        assert model.config.sampling_rate == 16000 and model.config.hop_length == 320
    model.save_pretrained(tmp_path / "again")
    assert senone.load(tmp_path / "again").spec == codec.spec
    assert AutoModel.from_config(AutoConfig.from_pretrained(folders[0])).codec.config == small
    with pytest.raises(InteropError, match="takes no revision"):
        AutoModelForAudioTokenization.from_pretrained(folders[1], revision="v2")
