"""Metrics with a net: every net of ours against the official one, by its package or by numbers measured with it."""

import re
import zlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from senone.errors import SenoneError
from senone.eval import asr, neural, opinion, speakers, wavlm, whisper
from senone.eval.metrics import METRICS, RATE, Item, Unmeasurable, folder, measure
from senone.interop import huggingface
from senone.models.ctc import Config, Recogniser
from senone.nn.encoder import EncoderConfig

SMALL = EncoderConfig(channels=(16,) * 7, width=32, layers=2, heads=4, hidden=64, pos_kernel=16, pos_groups=4)
PARAMETRIZED = "parametrizations.weight.original"
NOISE = (0.05 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32)


def present(name):
    """The metric, if what it needs is here."""
    metric = METRICS.get(name)()
    if metric.missing:
        pytest.skip(metric.missing)
    return metric


def drawn(weights, scale=0.3):
    """Weights that depend on their names and shapes alone."""
    found = {}
    for name, value in weights.items():
        x = scale * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(value.shape))
        if name.endswith(("running_var", "weight_g")):
            x = np.abs(x) + 0.5
        found[name] = torch.tensor(x, dtype=torch.float32)
    return found


@pytest.fixture(scope="module")
def clips(data):
    """Of four speakers, two clips each, with what they say."""
    import csv

    root, found = data / "librispeech_test_clean", []
    with open(root / "manifest.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if [speaker for speaker, _ in found].count(row["speaker"]) < 2 and float(row["seconds"]) < 6:
                wave, _ = soundfile.read(root / row["path"], dtype="float32")
                found.append((row["speaker"], Item(wave, wave, row["text"])))
    pairs = [[item for speaker, item in found if speaker == name] for name in dict(found)]
    return [pair for pair in pairs if len(pair) == 2][:4]


# what all share


def test_results_are_kept_by_what_the_wave_holds(monkeypatch):
    monkeypatch.setattr(neural, "KEPT", 2)
    heard = []
    call = neural.remembered(lambda wave: heard.append(0) or float(wave.sum()))
    assert call(NOISE) == call(NOISE.copy()) and len(heard) == 1
    for k in (1, 2, 3):
        assert call(NOISE * k) == pytest.approx(k * NOISE.sum(), rel=1e-3)
    assert len(heard) == 3  # the first was known
    call(NOISE)
    assert len(heard) == 4  # and has been forgotten
    with pytest.raises(Unmeasurable, match="100 samples are too short"):
        call(NOISE[:100])


@pytest.mark.parametrize("change", ["lacks", "has unknown", "is"])
@pytest.mark.parametrize(
    ("load", "name", "key", "net"),
    [
        (speakers.ecapa, speakers.ECAPA, None, speakers.Ecapa),
        (speakers.resemblyzer, speakers.RESEMBLYZER, "model_state", speakers.Resemblyzer),
        (opinion.distilled, opinion.DISTILLMOS, "model", opinion.Distilled),
    ],
)
def test_keys_are_strict(tmp_path, load, name, key, net, change):
    weights = dict(net().state_dict())
    first = sorted(weights)[0]
    if change == "lacks":
        del weights[first]
    elif change == "is":
        weights[first] = torch.zeros(*weights[first].shape, 2)
    else:
        weights["more"] = first = torch.zeros(1)
    torch.save({key: weights} if key else weights, tmp_path / name)
    with pytest.raises(SenoneError, match=f"{name}.*{change}.*" if change != "is" else f"{name}: '{first}' is"):
        load(tmp_path)


def test_a_file_of_something_else(tmp_path, monkeypatch):
    monkeypatch.setenv("SENONE_METRICS", str(tmp_path))
    (tmp_path / opinion.DISTILLMOS).write_bytes(b"no weights")
    score = measure(METRICS.get("distillmos")(), Item(NOISE, NOISE))
    assert score.status == "error" and opinion.DISTILLMOS in score.error and "cut short" in score.error


# recognisers


def small_whisper():
    sizes = {"n_mels": 80, "n_vocab": whisper.PLAIN + 1501, "n_audio_ctx": 1500, "n_audio_state": 16}
    sizes |= {"n_audio_head": 2, "n_audio_layer": 2, "n_text_ctx": 64, "n_text_state": 16, "n_text_head": 2}
    return whisper.Whisper(sizes | {"n_text_layer": 2}), sizes | {"n_text_layer": 2}


def test_whisper_equals_transformers():
    transformers = pytest.importorskip("transformers")
    ours, sizes = small_whisper()
    weights = drawn(ours.state_dict())
    weights["encoder.positional_embedding"] *= 0.1
    ours.load_state_dict(weights)
    config = transformers.WhisperConfig(
        vocab_size=sizes["n_vocab"], d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_target_positions=64,
    )  # fmt: skip
    theirs = transformers.WhisperForConditionalGeneration(config).eval()
    names = (
        (r"(attn|cross_attn)_ln", r"\1_layer_norm"), (r"^(encoder|decoder)\.blocks", r"\1.layers"),
        (r"\.attn", r".self_attn"), (r"\.cross_attn", r".encoder_attn"), (r"\.query", r".q_proj"),
        (r"\.key", r".k_proj"), (r"\.value", r".v_proj"), (r"\.out\.", r".out_proj."), (r"mlp\.0", "fc1"),
        (r"mlp\.2", "fc2"), ("mlp_ln", "final_layer_norm"), (r"ln_post|decoder\.ln\.", lambda m: {"ln_post":
        "layer_norm"}.get(m[0], "decoder.layer_norm.")), ("positional_embedding", "embed_positions.weight"),
        ("token_embedding", "embed_tokens"),
    )  # fmt: skip
    renamed = {}
    for name, value in weights.items():
        for old, new in names:
            name = re.sub(old, new, name)
        renamed[f"model.{name}"] = value
    missing, unknown = theirs.load_state_dict(renamed, strict=False)
    assert missing == ["proj_out.weight"] and not unknown
    mel = whisper.log_mel(NOISE, 80)
    tokens = [whisper.BEGIN, whisper.PLAIN, 7, 300, 41]
    with torch.no_grad():
        expected = theirs(mel, decoder_input_ids=torch.tensor([tokens])).logits[0]
        x = ours.encoder(mel)
        heard = [block.cross_attn.keys(x) for block in ours.decoder.blocks]
        past, found = [None, None], []
        for token in tokens:
            scores, past = ours.decoder(token, past, heard)
            found.append(scores)
    torch.testing.assert_close(torch.stack(found), expected, atol=2e-4, rtol=1e-4)
    said = ours.tokens(mel)
    assert len(said) <= 32 and all(token < whisper.BEGIN for token in said) and said[0] != whisper.BLANK


def test_whispers_spectrum_equals_transformers():
    transformers = pytest.importorskip("transformers")
    expected = transformers.WhisperFeatureExtractor()(NOISE, sampling_rate=RATE, return_tensors="np").input_features
    np.testing.assert_allclose(whisper.log_mel(NOISE, 80).numpy(), expected, atol=2e-4)


def test_long_recordings_are_cut_where_it_is_quiet():
    wave = np.tile(NOISE, 40)
    wave[28 * RATE : 28 * RATE + 4000] = 0
    parts = whisper.cuts(wave)
    assert np.array_equal(np.concatenate(parts), wave)
    assert max(map(len, parts)) <= 30 * RATE and 28 < len(parts[0]) / RATE < 28.3
    assert len(whisper.cuts(wave[: 30 * RATE])) == 1


def test_tokens_files(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("IQ== 0\nIg== 1\n")
    assert whisper.read_tokens(good) == [b"!", b'"']
    bad.write_text("IQ== 0\nIg== 2\n")
    for path in (bad, tmp_path / "no"):
        with pytest.raises(SenoneError, match=path.name):
            whisper.read_tokens(path)
    long = b"x" * 200
    assert asr.pieces(b"\x01a" + bytes([200 - 128 + 128 - 0, 1]) + long) == [b"a", long]
    with pytest.raises(SenoneError, match="cut short"):
        asr.pieces(b"\x05ab")


@pytest.mark.parametrize("name", ["whisper", "moonshine"])
def test_recognisers_hear_speech(clips, name):
    wer, cer = present(f"wer_{name}"), present(f"cer_{name}")
    for metric, most in ((wer, 0.12), (cer, 0.06)):
        scores = [measure(metric, pair[0]) for pair in clips[:2]]
        assert all(score.status == "ok" for score in scores)
        assert sum(s.value for s in scores) / sum(s.weight for s in scores) < most
    item = clips[0][0]
    other = measure(wer, replace(item, text=clips[1][0].text))
    assert other.status == "ok" and other.value / other.weight > 0.7
    assert measure(wer, replace(item, text=None)).status == "na"
    assert measure(wer, replace(item, text=" ")).error == "there is no reference text"


def test_hubert_reads_greedily_as_transformers_does(tmp_path, monkeypatch):
    """A small net with random weights, saved as the official directory is."""
    transformers = pytest.importorskip("transformers")
    settings = {"model_type": "senone_hubert", "channels": [16] * 7, "width": 32, "layers": 2, "heads": 4}
    settings |= {"hidden": 64, "pos_kernel": 16, "pos_groups": 4, "feat_norm": "layer", "conv_bias": True}
    model = Recogniser(Config(settings | {"ln_position": "pre", "wav_norm": "hf"})).eval()
    model.load_state_dict(drawn(model.state_dict()))
    monkeypatch.setenv("SENONE_METRICS", str(tmp_path))
    target = huggingface.save(model, tmp_path / asr.HUBERT)
    theirs = transformers.HubertForCTC.from_pretrained(target).eval()
    extract = transformers.Wav2Vec2FeatureExtractor.from_pretrained(target)
    tokens = transformers.Wav2Vec2CTCTokenizer.from_pretrained(target)
    with torch.no_grad():
        logits = theirs(extract(NOISE, sampling_rate=RATE, return_tensors="pt").input_values).logits
    text = tokens.batch_decode(logits.argmax(-1))[0]
    assert len(text) > 3 and asr.hubert(folder())(NOISE) == text
    wer, cer = (METRICS.get(name)() for name in ("wer_hubert", "cer_hubert"))
    if wer.missing:
        pytest.skip(wer.missing)
    assert measure(wer, Item(NOISE, NOISE, text)).value == 0 == measure(cer, Item(NOISE, NOISE, text)).value
    assert measure(cer, Item(NOISE, NOISE, text + " more")).value > 0


# speakers


def to_unispeech(name):
    """A name of ours as `wavlm_large_finetune.pth` has it."""
    pairs = (
        (r"^body\.", ""), (r"masked_spec_embed", "mask_emb"), (r"feature_projection\.layer_norm", "layer_norm"),
        (r"feature_projection\.projection", "post_extract_proj"), (r"(conv_layers\.\d+)\.conv", r"\1.0"),
        (r"(conv_layers\.\d+)\.layer_norm", r"\1.2.1"), (r"pos_conv_embed\.conv", "pos_conv.0"),
        (r"(encoder\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"), (r"\.attention\.", ".self_attn."),
        (r"feed_forward\.intermediate_dense", "fc1"), (r"feed_forward\.output_dense", "fc2"),
    )  # fmt: skip
    if not name.startswith("body."):
        return name
    for old, new in pairs:
        name = re.sub(old, new, name)
    return wavlm.BODY + name


SMALL_WAVLM = replace(SMALL, feat_norm="layer", ln_position="pre", wav_norm="fairseq")


def test_verifier_equals_unispeech(tmp_path, monkeypatch):
    """Golden: UniSpeech's own WavLM.py and ecapa_tdnn.py with these weights under these names."""
    small = partial(wavlm.Verifier, SMALL_WAVLM, 16, 8)
    monkeypatch.setattr(wavlm, "Verifier", small)
    weights = drawn({to_unispeech(name): value for name, value in small().state_dict().items()})
    assert len(weights) == 292
    weights["loss_calculator.projection.weight"] = torch.zeros(5, 8)
    torch.save({"model": weights, "best_valid_eer": 100.0}, tmp_path / wavlm.WAVLM)
    wave = np.random.default_rng(0).standard_normal(40000).astype(np.float32) * 0.1
    golden = [-8.445049, 1.547103, -7.992321, -12.682087, -0.588993, 12.956984, -6.482384, -0.975611]
    np.testing.assert_allclose(wavlm.verifier(tmp_path)(wave), golden, atol=1e-3)
    del weights["linear.bias"]
    torch.save({"model": weights}, tmp_path / wavlm.WAVLM)
    wavlm.verifier.cache_clear()
    with pytest.raises(SenoneError, match="wavlm_large_finetune.pth lacks 1 weights, first 'linear.bias'"):
        wavlm.verifier(tmp_path)


def test_the_large_verifier_has_the_tensors_of_the_released_file():
    """710, and the classifier of training."""
    with torch.device("meta"):
        weights = wavlm.Verifier().state_dict()
    assert len(weights) == 710
    sizes = {to_unispeech(name): tuple(value.shape) for name, value in weights.items()}
    first = f"{wavlm.BODY}encoder.layers.0.self_attn"
    assert sizes[f"{first}.relative_attention_bias.weight"] == (320, 16) and sizes[f"{first}.grep_a"] == (1, 16, 1, 1)
    assert sizes["feature_weight"] == (25,) and sizes["linear.weight"] == (256, 3072)
    assert f"{wavlm.BODY}encoder.layers.1.self_attn.relative_attention_bias.weight" not in sizes


def test_wavlm_equals_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.WavLMConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=[16] * 7,
        feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=16, max_bucket_distance=800,
        num_conv_pos_embedding_groups=4, apply_spec_augment=False, layerdrop=0.0,
    )  # fmt: skip
    theirs, ours = transformers.WavLMModel(config).eval(), wavlm.WavLM(SMALL_WAVLM).eval()
    weights = drawn(ours.state_dict())
    ours.load_state_dict(weights)
    pairs = (
        ("grep_linear", "gru_rel_pos_linear"), ("grep_a", "gru_rel_pos_const"), ("weight_g", PARAMETRIZED + "0"),
        ("relative_attention_bias", "rel_attn_embed"), ("weight_v", PARAMETRIZED + "1"),
    )  # fmt: skip
    for old, new in pairs:
        weights = {name.replace(old, new): value for name, value in weights.items()}
    theirs.load_state_dict(weights)
    wave = torch.from_numpy(np.tile(NOISE, 10)[None])  # long enough for the farthest bucket
    with torch.no_grad():
        out = theirs(nn.functional.layer_norm(wave, wave.shape[1:]), output_hidden_states=True)
        expected = [*out.hidden_states[:-1], out.last_hidden_state]
        for one, other in zip(ours.states(wave), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("embed", "name", "unit", "golden"),
    [  # of `NOISE`, by SpeechBrain 1.0.1 and by Resemblyzer 0.1.4 without its VAD
        (speakers.ecapa, "sim_ecapa", False, [-6.773949, 6.799541, -11.010224, -8.253199, 1.578910, 7.929892]),
        (speakers.resemblyzer, "sim_resemblyzer", True, [0.0, 0.016363, 0.0, 0.0, 0.070010, 0.013895]),
    ],
)
def test_embeddings_equal_the_official_ones(embed, name, unit, golden):
    present(name)
    found = embed(folder())(NOISE)
    np.testing.assert_allclose((found / np.linalg.norm(found) if unit else found)[:6], golden, atol=2e-4)


@pytest.mark.parametrize("name", ["sim_ecapa", "sim_resemblyzer"])
def test_speakers_are_told_apart(clips, name):
    metric = present(name)

    def similarity(one, other):
        size = min(len(one.ref), len(other.ref), 3 * RATE)
        return measure(metric, Item(one.ref[:size], other.ref[:size])).value

    assert similarity(clips[0][0], clips[0][0]) == pytest.approx(1, abs=1e-6)
    same = [similarity(*pair) for pair in clips]
    apart = [similarity(clips[k][0], clips[k - 1][1]) for k in range(len(clips))]
    assert min(same) > max(apart), (same, apart)


# opinions


def test_utmos_is_what_its_formula_says(tmp_path, monkeypatch):
    """Against wav2vec 2.0 of transformers, an LSTM of torch, and the rest written out; names as SpeechMOS has them."""
    transformers = pytest.importorskip("transformers")
    small = partial(opinion.Strong, SMALL, 12, 20)
    monkeypatch.setattr(opinion, "Strong", small)
    weights = drawn(small().state_dict())
    official = {}
    for name, value in weights.items():
        mine = name.startswith("wav2vec2.")
        theirs = to_unispeech(name.replace("wav2vec2.", "body.")).removeprefix(wavlm.BODY) if mine else name
        official["wav2vec2." * mine + theirs.replace(".2.1.", ".2.")] = value
    assert "wav2vec2.feature_extractor.conv_layers.0.2.weight" in official and "wav2vec2.mask_emb" in official
    torch.save(official, tmp_path / opinion.UTMOS)

    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip
    encoder, lstm = transformers.Wav2Vec2Model(config).eval(), nn.LSTM(32 + 256, 12, bidirectional=True)
    body = {k.removeprefix("wav2vec2."): v for k, v in weights.items() if k.startswith("wav2vec2.")}
    for n, part in enumerate("gv"):
        body = {k.replace(f"weight_{part}", PARAMETRIZED + str(n)): v for k, v in body.items()}
    encoder.load_state_dict(body)
    lstm.load_state_dict({k.removeprefix("blstm."): v for k, v in weights.items() if k.startswith("blstm.")})
    with torch.no_grad():
        x = encoder(torch.from_numpy(NOISE)[None]).last_hidden_state[0]
        who = torch.cat([weights["domain_emb"][0], weights["judge_emb"][0]])
        x = lstm(torch.stack([torch.cat([frame, who]) for frame in x]))[0]
        x = (x @ weights["projection.0.weight"].T + weights["projection.0.bias"]).clamp(min=0)
        expected = float((x @ weights["projection.2.weight"].T + weights["projection.2.bias"]).mean() * 2 + 3)
    assert opinion.strong(tmp_path)(NOISE) == pytest.approx(expected, abs=1e-3)
    with torch.device("meta"):
        assert len(opinion.Strong.func().state_dict()) == 225  # as many as the released file has


GOLDEN = {  # of `NOISE`, by distillmos 0.9.1 and speechmos 0.0.1.1
    "distillmos": 2.2058391,
    "dnsmos": 1.0767726,
    "dnsmos_sig": 1.0999374,
    "dnsmos_bak": 1.1371163,
    "dnsmos_p808": 2.1197005,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_opinions_equal_the_official_ones(name):
    assert measure(present(name), Item(0 * NOISE, NOISE)).value == pytest.approx(GOLDEN[name], abs=1e-4)


def test_distillmos_hears_windows(clips):
    """Of 7.68 s, at most a second apart, the first at the start and the last at the end: their mean."""
    present("distillmos")
    net, size = opinion.distilled(folder()), 384 * 320
    wave = np.concatenate([item.ref for pair in clips for item in pair])[: size + RATE + 100]
    starts = (0, (RATE + 100) // 2, RATE + 100)
    assert net(wave) == pytest.approx(np.mean([net(wave[at : at + size]) for at in starts]), abs=1e-4)


@pytest.mark.parametrize("name", ["distillmos", "dnsmos", "dnsmos_p808"])
def test_noise_costs_opinion(clips, name):
    metric, wave = present(name), np.resize(clips[0][0].ref, round(9.5 * RATE))
    hiss = 0.02 * np.random.default_rng(1).standard_normal(len(wave)).astype(np.float32)
    clean, noisy = (measure(metric, Item(wave, x)).value for x in (wave, wave + hiss))
    assert clean > noisy + 0.5


def test_dnsmos_has_no_opinion_of_silence():
    assert measure(present("dnsmos"), Item(NOISE, 0 * NOISE)).status == "no_speech"
