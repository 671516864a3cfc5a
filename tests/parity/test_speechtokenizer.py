"""The official SpeechTokenizer is the oracle of ours, its files read by our reader: codes bit-equal, sound to 1e-4.

The package pins its world, so `pip install --no-deps speechtokenizer==1.0.1 einops` puts it beside ours, and elsewhere
`golden/speechtokenizer.safetensors` speaks for it: `python tests/parity/test_speechtokenizer.py` wrote that.
"""

import importlib.util
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import senone
from senone.audio import Audio
from senone.errors import SenoneError
from senone.interop.speechtokenizer import discriminators

GOLDEN = Path(__file__).parents[1] / "golden" / "speechtokenizer.safetensors"
SETTINGS = {
    "sample_rate": 16000, "n_filters": 2, "strides": [5, 2], "dimension": 12, "semantic_dimension": 6,
    "lstm_layers": 2, "bidirectional": True, "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1,
    "activation": "ELU", "n_q": 3, "codebook_size": 16,
}  # fmt: skip
HOP = 10


def official(settings: dict[str, Any]) -> Any:
    """Theirs, with random weights and codebooks that fit its vectors; without its trainer, which wants torchaudio."""
    found = importlib.util.find_spec("speechtokenizer")
    if found is None or importlib.util.find_spec("einops") is None:
        pytest.skip("needs pip install --no-deps speechtokenizer==1.0.1 einops")
    if "speechtokenizer" not in sys.modules:
        sys.modules["speechtokenizer"] = importlib.util.module_from_spec(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what it uses
        from speechtokenizer.model import SpeechTokenizer

        model: Any = SpeechTokenizer(settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("alpha"):
                weight.uniform_(0.5, 2)
            elif name.endswith("weight_g"):
                weight.mul_(1 + torch.rand_like(weight))
        spread = model.encoder(0.3 * torch.randn(1, 1, 200 * HOP)).std()
        for layer in model.quantizer.vq.layers:
            layer._codebook.embed.normal_().mul_(spread)
            layer._codebook.inited.fill_(1)
    return model


def files(folder: Path, weights: dict[str, Any], settings: dict[str, Any] | None = None) -> Path:
    """An official directory."""
    torch.save(weights, folder / "SpeechTokenizer.pt")
    if settings:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("activation", ["ELU", "Snake"])
@pytest.mark.parametrize("strides", [[5, 2], [8, 5, 4, 2]])
def test_codes_and_sound_are_theirs(tmp_path, activation: str, strides: list[int]):
    settings = SETTINGS | {"activation": activation, "strides": strides}
    oracle = official(settings)
    ours = senone.load(files(tmp_path, oracle.state_dict(), settings))
    seen = set()
    for samples in (1, 2, ours.hop - 1, ours.hop, ours.hop + 1, 7 * ours.hop + 3, 16000):
        wave = 0.3 * torch.randn(1, samples)
        with torch.no_grad():
            expected = oracle.encode(wave[None])
            sound = oracle.decode(expected)[0, :, :samples]
        codes = ours.encode(Audio(wave, 16000))
        assert torch.equal(codes.data, expected.transpose(0, 1))
        torch.testing.assert_close(ours.decode(codes)[0].wave, sound, rtol=0, atol=1e-4)
        seen |= set(expected.flatten().tolist())
    assert len(seen) > 10


def test_the_training_pass_is_theirs(tmp_path):
    oracle = official(SETTINGS)
    ours, wave = senone.load(files(tmp_path, oracle.state_dict(), SETTINGS)), 0.3 * torch.randn(2, 1, 401)
    out, _, feature = oracle(wave)  # in evaluation mode its gradient is not straight-through, the values are the same
    mine = ours(wave, target=torch.randn(2, 41, 6))
    torch.testing.assert_close(mine.wave, out[:, :, :401], rtol=0, atol=1e-4)
    first = ours.quantizer.books[0](mine.codes[:, 0])
    torch.testing.assert_close(ours.transform(first), feature, rtol=0, atol=1e-5)
    assert mine.losses["distill"] > 0.3


def test_the_official_size():
    with torch.device("meta"):
        from senone.models.speechtokenizer import Config, SpeechTokenizer

        ours = SpeechTokenizer(Config())
    gains = sum(module.weight.shape[0] for module in ours.modules() if isinstance(module, torch.nn.Conv1d))
    gains += 1024 + 512 + 256 + 128  # of the transposed ones weight norm is over what comes in
    assert sum(weight.numel() for weight in ours.parameters()) + gains == 103_675_586
    assert ours.hop == 320 and ours.quantizer.sizes == (1024,) * 8


def golden(kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights as the official code names them, and what it made of a sound."""
    every = {name.removeprefix(f"{kind}/"): value for name, value in load_file(GOLDEN).items() if name.startswith(kind)}
    return {name: every.pop(name) for name in list(every) if "." in name}, every


@pytest.mark.parametrize("kind", ["ELU", "Snake"])
def test_the_golden_file_speaks_for_them(tmp_path, kind: str):
    weights, expected = golden(kind)
    ours = senone.load(files(tmp_path, weights, SETTINGS | {"activation": kind}))
    for samples in (1, 999, 1000, 1001):
        codes = ours.encode(Audio(expected["wave"][:, :samples], 16000))
        assert torch.equal(codes.data[0].to(torch.uint8), expected[f"codes-{samples}"])
        torch.testing.assert_close(ours.decode(codes)[0].wave, expected[f"sound-{samples}"], rtol=0, atol=1e-4)


def test_a_state_dict_alone_tells_its_sizes_and_a_trainer_file_holds_one(tmp_path):
    weights, _ = golden("Snake")
    whole = senone.load(files(tmp_path, weights) / "SpeechTokenizer.pt")
    assert (whole.config.strides, whole.config.activation, whole.config.teacher_width) == ((2, 5), "snake", 6)
    torch.save({"generator": weights, "discriminators": {"mpd": {}}, "best_dev_mel_loss": 1.0}, tmp_path / "trainer.pt")
    assert senone.load(tmp_path / "trainer.pt").spec == whole.spec
    again = type(whole).from_pretrained(whole.save_pretrained(tmp_path / "ours"))
    assert again.spec == whole.spec


def test_a_repository_with_the_model_in_a_folder(tmp_path):
    (tmp_path / "speechtokenizer_hubert_avg").mkdir()
    files(tmp_path / "speechtokenizer_hubert_avg", golden("ELU")[0], SETTINGS)
    assert type(senone.load(tmp_path)).__name__ == "SpeechTokenizer"


def without(weights: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if name not in names}


@pytest.mark.parametrize(
    "change, settings, words",
    [
        (lambda w: without(w, "decoder.model.1.lstm.bias_hh_l1"), {}, "lacks 1 weights, first 'decoder.model.1.lstm."),
        (lambda w: without(w, "encoder.model.9.conv.conv.weight_v"), {}, "lacks"),
        (lambda w: without(w, "quantizer.vq.layers.1._codebook.embed_avg"), {}, "layers.1._codebook.embed_avg'"),
        (lambda w: w | {"decoder.model.99.bias": torch.ones(1)}, {}, "has unknown 1 weights, first 'decoder.model.99"),
        (lambda w: w | {"encoder.model.0.conv.conv.bias": torch.ones(3)}, {}, r"conv.conv.bias' is \(3,\)"),
        (lambda w: w | {"encoder.model.3.conv.conv.weight_v": torch.ones(2)}, {}, "shapes"),
        (lambda w: w | {"decoder.model.0.conv.conv.weight_g": torch.ones(3)}, {}, r"0.conv.conv.weight_v': .* \(3,\)"),
        (lambda w: w | {"decoder.model.0.conv.conv.weight_v": torch.ones(())}, {}, r"0.conv.conv.weight_v': .* \(\)"),
        (lambda w: w, {"n_q": 8}, "config.json: n_q is 8, the weights have 3"),
        (lambda w: w, {"n_residual_layers": 2}, "n_residual_layers is 2"),
        (lambda w: w, {"sample_rate": "fast"}, "sample_rate is 'fast'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, settings: dict[str, Any], words: str):
    files(tmp_path, change(golden("ELU")[0]), SETTINGS | settings)
    with pytest.raises(SenoneError, match=words):
        senone.load(tmp_path)


def test_a_directory_without_weights_or_with_too_many(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(SenoneError, match="and has none"):
        senone.load(tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(SenoneError, match=r"and has a.pt, b.pt"):
        senone.load(tmp_path)


def test_a_file_cut_short(tmp_path):
    folder = files(tmp_path, golden("ELU")[0], SETTINGS)
    data = (folder / "SpeechTokenizer.pt").read_bytes()
    (folder / "SpeechTokenizer.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(SenoneError, match="SpeechTokenizer.pt is cut short"):
        senone.load(folder)


def test_the_official_discriminators_judge_alike(tmp_path, monkeypatch):
    """Theirs want torchaudio, for one spectrogram: this one."""

    class Spectrogram(torch.nn.Module):
        def __init__(self, n_fft, hop_length, **_):
            super().__init__()
            self.hop = hop_length
            self.register_buffer("window", torch.hann_window(n_fft))

        def forward(self, x):
            window = self.get_buffer("window")
            y = torch.stft(x[:, 0], len(window), self.hop, window=window, center=False, return_complex=True)
            return y[:, None] / window.square().sum().sqrt()

    official(SETTINGS)
    transforms = types.SimpleNamespace(Spectrogram=Spectrogram)
    monkeypatch.setitem(sys.modules, "torchaudio", types.SimpleNamespace(transforms=transforms))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from speechtokenizer import discriminators as theirs

        oracles = {
            "mpd": theirs.MultiPeriodDiscriminator(),
            "msd": theirs.MultiScaleDiscriminator(),
            "mstftd": theirs.MultiScaleSTFTDiscriminator(4),
        }
    weights = {name: oracle.eval().state_dict() for name, oracle in oracles.items()}
    torch.save({"generator": {}, "discriminators": weights}, tmp_path / "SpeechTokenizerTrainer_00000001")
    ours = discriminators(tmp_path / "SpeechTokenizerTrainer_00000001")
    wave = 0.3 * torch.randn(1, 2500)
    with torch.no_grad():
        for name, kind in (("mpd", "period"), ("msd", "scale"), ("mstftd", "stfts")):
            logits, _, features, _ = oracles[name](wave[:, None], wave[:, None])
            said = ours[kind](wave)
            assert len(said) == len(logits)
            for mine, logit, inner in zip(said, logits, features, strict=True):
                # HiFi-GAN's lists have the logits at the end
                pairs = [*zip(mine.features, inner, strict=name == "mstftd"), (mine.logits, logit.flatten(1))]
                assert all(float((a - b).abs().max()) < 1e-4 * float(b.abs().max()) for a, b in pairs)


def test_discriminators_that_are_none_are_named(tmp_path):
    torch.save({"generator": {}}, tmp_path / "a.pt")
    with pytest.raises(SenoneError, match="a.pt holds no discriminators"):
        discriminators(tmp_path / "a.pt")
    for name, value in {
        "x.y": torch.ones(1),
        "x.convs.y": torch.ones(1),
        "x.0.convs.first.bias": torch.ones(1),
        "spec_transform.window": torch.ones(()),
    }.items():
        torch.save({"discriminators": {"mpd": {name: value}}}, tmp_path / "b.pt")
        with pytest.raises(SenoneError, match="b.pt: 'mpd' is no discriminator"):
            discriminators(tmp_path / "b.pt")


def write() -> None:
    """The golden file. No code lies near the edge between two, so that another machine's rounding changes none."""
    everything = {}
    for kind in ("ELU", "Snake"):
        torch.manual_seed(0)
        model = official(SETTINGS | {"activation": kind})
        parts = {name: value.clone() for name, value in model.state_dict().items()}
        for attempt in range(1000):
            t = torch.arange(1001) / 16000
            wave = 0.3 * torch.sin(2 * torch.pi * (200 + attempt + 9000 * t) * t)[None] + 0.1 * torch.randn(1, 1001)
            if min(margin(model, wave[:, :samples]) for samples in (1, 999, 1000, 1001)) > 1e-4:
                break
        else:
            raise SystemExit("no sound far from all edges")
        parts["wave"] = wave
        for samples in (1, 999, 1000, 1001):
            with torch.no_grad():
                codes = model.encode(wave[None, :, :samples])
                parts[f"sound-{samples}"] = model.decode(codes)[0, :, :samples].clone()
            parts[f"codes-{samples}"] = codes[:, 0].to(torch.uint8)
        everything |= {f"{kind}/{name}": value for name, value in parts.items()}
    save_file(everything, GOLDEN)


@torch.no_grad()
def margin(model: Any, wave: torch.Tensor) -> float:
    """The least difference of a nearest and a second nearest code's squared distances, over that distance."""
    residual, least = model.encoder(wave[None])[0].T, 1.0
    for layer in model.quantizer.vq.layers:
        codes = layer._codebook.embed
        near = torch.cdist(residual.double(), codes.double()).square().sort(1)
        least = min(least, float(((near.values[:, 1] - near.values[:, 0]) / near.values[:, 1]).min()))
        residual = residual - codes[near.indices[:, 0]]
    return least


if __name__ == "__main__":
    write()
