"""The recipes of SpeechTokenizer and X-codec2, made tiny: they learn from a teacher, resume to the bit, and the model
that comes out holds what it needs and nothing else."""

import pytest
import torch

import senone
from senone.models.hubert import Hubert
from senone.models.units import Units
from senone.train import TrainError, loop, run

RATE = 16000
TINY = {
    "speechtokenizer": ["filters=2", "dim=8", "levels=3", "size=16", "teacher_width=8"],
    "xcodec2": ["channels=2", "strides=[5,4,4,2,2]", "width=32", "layers=1", "heads=2", "hidden=32", "steps=[4,4,4]"],
}
JUDGES = {
    "speechtokenizer": "[{kind: period, width: 1}, {kind: scale, width: 4}, {kind: stfts, width: 2}]",
    "xcodec2": "[{kind: slim, width: 1}, {kind: spectrogram, width: 2}]",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Below it: sound/ and a teacher/ of 50 frames a second."""
    top = tmp_path_factory.mktemp("semantic")
    (top / "sound").mkdir()
    t = torch.arange(2 * RATE) / RATE
    for pitch in (110, 150, 220):
        voice = sum(torch.sin(2 * torch.pi * pitch * k * t) / k for k in range(1, 9))
        beat = 0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * t)
        senone.Audio((0.2 * voice * beat)[None], RATE).save(top / "sound" / f"{pitch}.wav")
    torch.manual_seed(0)
    shape = {"channels": (8, 8), "kernels": (20, 32), "strides": (20, 16), "feat_norm": "layer", "ln_position": "pre"}
    more = {"width": 8, "layers": 3, "heads": 2, "hidden": 16, "pos_kernel": 8, "pos_groups": 2}
    teacher = Hubert(Hubert.Config(**shape, **more)).eval()
    teacher.save_pretrained(top / "teacher")
    Units.of(teacher, torch.randn(5, 8), layer=1).save_pretrained(top / "units")
    return top


def settings(system: str, folder, recipe: str, *more: str) -> list[str]:
    small = [f"model.{each}" for each in TINY[system]]
    short = ["crop=0.32", "batch=1.28", "judged=0.2", "log_steps=1", "mel_windows=[256]"]
    common = [f"data={folder / 'sound'}", f"recipe={recipe}", f"teacher={folder / 'teacher'}", "layer=2"]
    return [*common, *small, *short, "precision=fp32", *more]


@pytest.mark.parametrize("system", TINY)
def test_a_mini_recipe_learns_from_its_teacher(system, folder, tmp_path, log):
    more = ["steps=30", "continuous=0", "optim.generator.lr=3e-3", "optim.generator.warmup=2"]
    model = senone.load(run(system, settings(system, folder, "mini", *more), tmp_path))
    rows, own = log(tmp_path), {"speechtokenizer": "distill", "xcodec2": "semantic"}[system]
    for name in ("mel", own):
        first, last = (sum(row[name] for row in some) / 5 for some in (rows[:5], rows[-6:-1]))
        assert last < first, name
    audio = senone.Audio.read(folder / "sound" / "110.wav")
    assert model.decode(model.encode(audio))[0].wave.shape == audio.wave.shape
    inside = [name for name in model.state_dict() if "feature_extractor" in name]
    assert bool(inside) == (system == "xcodec2")  # X-codec2 hears through its teacher, SpeechTokenizer only learns
    if inside:
        kept = senone.load(folder / "teacher").state_dict()
        for name, value in model.semantic.state_dict().items():
            assert torch.equal(value, kept[name]), name


def test_units_lend_a_codec_their_encoder_up_to_their_layer(folder, tmp_path):
    words = settings("xcodec2", folder, "mini", f"teacher={folder / 'units'}", "steps=1")
    for more, depth in (["layer=null"], 1), (["layer=2"], 2):
        model = senone.load(run("xcodec2", [*words, *more], tmp_path / str(depth)))
        kept = senone.load(folder / "teacher").state_dict()
        assert len(model.semantic.encoder.layers) == depth
        for name, value in model.semantic.state_dict().items():
            assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize("system", TINY)
def test_a_paper_recipe_stopped_and_resumed_equals_a_run_without(system, folder, tmp_path, monkeypatch, weights, log):
    words = settings(system, folder, "paper", f"discriminators={JUDGES[system]}", "steps=4")
    if system == "xcodec2":
        words += [f"perceptual={folder / 'teacher'}", "perceptual_layers=[1, 2]", "perceptual_from=2"]
    run(system, words, tmp_path / "whole")
    step = loop._step

    def told(task, batch, *rest):
        values, stop = step(task, batch, *rest)
        return values, stop or batch["step"] == 1

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", told)
        run(system, words, tmp_path / "parts")
    assert log(tmp_path / "parts")[-1]["step"] == 2
    run(system, words, tmp_path / "parts")
    whole, parts = (weights(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and not [key for key in whole if not torch.equal(whole[key], parts[key])]
    first, last = log(tmp_path / "whole")[0], log(tmp_path / "whole")[-1]
    assert last.keys() >= {"disc", "adv", "feat", "logmel"}
    if system == "xcodec2":
        assert "perceptual" in last and "perceptual" not in first


@pytest.mark.parametrize(
    ("system", "more", "said"),
    [
        ("speechtokenizer", ["teacher=''"], "has a head for a teacher: say teacher=NAME"),
        ("xcodec2", ["teacher=''"], "XCodec2 is built around an encoder of speech: say teacher=NAME"),
        ("xcodec2", ["layer=avg"], "XCodec2 hears one layer of its teacher: say layer=NUMBER"),
    ],
)
def test_what_is_missing_is_said(system, more, said, folder, tmp_path):
    with pytest.raises(TrainError, match=said):
        run(system, settings(system, folder, "mini", *more), tmp_path)
