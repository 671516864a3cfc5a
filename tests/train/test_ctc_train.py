"""Fine-tuning with CTC: it learns to spell tones, resumes to the bit, and two processes see what one sees."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import senone
from senone import config as configs
from senone.audio import Audio
from senone.ctc.transcribe import decoder
from senone.data.loader import Store
from senone.data.manifest import Cut, DataError, read
from senone.data.utterances import Utterances, subset
from senone.errors import SenoneError
from senone.models.ctc import ENGLISH
from senone.models.hubert import Config, Hubert
from senone.train import RECIPES, fit, run
from senone.train.ctc import CTCRecipe, evaluate, prepare

TEXTS = {"one": "Abba, a cab!", "two": "bad dad", "three": "add a bed"}
PITCHES = {letter: 300 * 1.4**k for k, letter in enumerate("ABCDE")}
ENCODER = {
    "channels": (16, 16, 16), "kernels": (10, 8, 4), "strides": (8, 5, 4), "width": 32, "layers": 1, "heads": 2,
    "hidden": 64, "pos_kernel": 16, "pos_groups": 2,
}  # fmt: skip
STILL = {name: 0.0 for name in ("dropout", "attention_dropout", "input_dropout", "activation_dropout", "layer_drop")}


def say(text: str) -> Audio:
    """A tone for each letter, silence for the rest."""
    t = torch.arange(800) / 16000
    parts = [torch.sin(2 * torch.pi * PITCHES.get(letter, 0) * t) for letter in text.upper()]
    return Audio(0.3 * torch.cat([torch.zeros(800), *parts, torch.zeros(800)])[None], 16000)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A folder with a manifest, and an encoder that was never trained."""
    top = tmp_path_factory.mktemp("spoken")
    lines = ["path\tseconds\ttext\tsplit"]
    for name, text in TEXTS.items():
        audio = say(text)
        audio.save(top / f"{name}.wav")
        lines += [f"{name}.wav\t{audio.seconds}\t{text}\t{split}" for split in ("train", "dev")]
    lines.append("one.wav\t1.0\t\ttrain")  # what nobody has written down
    (top / "manifest.tsv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    Hubert(Config(**ENCODER, classes=(7,))).save_pretrained(top / "encoder")
    return top


@pytest.fixture
def recipe(spoken) -> CTCRecipe:
    base = CTCRecipe(data=str(spoken), encoder=str(spoken / "encoder"), batch=4, freeze=2, steps=6, log_steps=1, ema=0)
    return configs.override(base, ["optim.recogniser.warmup=1", "optim.recogniser.lr=2e-3", "channel_length=4"])


def ready(recipe):
    torch.manual_seed(recipe.seed)  # as `run` does
    return prepare(recipe)


def test_it_learns_to_spell(recipe, spoken, tmp_path, log):
    words = ["scratch=true", "mask_p=0", "channel_p=0", "steps=120", "log_steps=60", f"dev={spoken}"]
    words += ["optim.recogniser.lr=5e-3", "vocabulary=transcripts"]
    model = configs.to_dict(Config(**ENCODER, **STILL)) | {"model_type": "senone_hubert", "classes": []}
    recipe = replace(configs.override(recipe, words), encoder="", model=model)
    found = senone.load(fit(*ready(recipe), recipe, tmp_path))
    assert found.config.vocabulary == ("<pad>", "|", "A", "B", "C", "D", "E")
    dev = read(spoken, "dev")
    assert evaluate(found, dev) == evaluate(found, dev, decoder(found, beam=4)) == (0.0, 0.0)
    assert evaluate(found, [replace(dev[1], text="bad dab")]) == (0.5, pytest.approx(1 / 7))
    last = log(tmp_path)[-1]
    assert last["dev/wer"] == last["dev/cer"] == last["wer"] == 0 and last["heard"] == last["text"]
    assert last["text"] in {"ABBA A CAB", "BAD DAD", "ADD A BED"}
    assert "dev/wer" not in log(tmp_path)[0]


def test_first_only_the_head_learns_and_never_the_convolutions(recipe, spoken, tmp_path, weights):
    before = senone.load(spoken / "encoder").state_dict()
    for steps, moved in ((2, False), (4, True)):
        fit(*ready(replace(recipe, steps=steps)), replace(recipe, steps=steps), tmp_path / str(steps))
        after = weights(tmp_path / str(steps))
        same = {
            name
            for name in before
            if torch.equal(before[name], after.get(f"/players/recogniser/encoder.{name}", before[name]))
        }
        assert any(name.startswith("encoder.layers") for name in before.keys() - same) == moved
        assert {name for name in before if name.startswith("feature_extractor")} <= same
        assert bool(after["/players/recogniser/lm_head.bias"].any())


def test_stopped_and_gone_on_equals_a_run_without(recipe, tmp_path, weights):
    fit(*ready(recipe), recipe, tmp_path / "whole")
    task, data = ready(recipe)
    losses = task.losses

    def stopping(batch, player):
        if batch["step"] == 3:
            raise KeyboardInterrupt
        return losses(batch, player)

    task.losses = stopping
    with pytest.raises(KeyboardInterrupt):
        fit(task, data, replace(recipe, save_minutes=0), tmp_path / "cut")
    fit(*ready(recipe), recipe, tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and not [name for name in whole if not torch.equal(whole[name], cut[name])]


def test_by_the_words_of_the_command_line(spoken, tmp_path):
    """`senone train ctc`, and fine-tuning that starts from another recogniser."""
    words = [f"data={spoken}", f"encoder={spoken / 'encoder'}", "recipe=mini", "steps=2", "batch=2", "log_steps=1"]
    model = senone.load(run("ctc", [*words, "model.activation_dropout=0.2"], tmp_path / "one"))
    config = model.encoder.config
    assert (config.activation_dropout, config.layer_drop, config.feature_grad) == (0.2, 0.05, 0.0)
    still = ["optim.recogniser.lr=0", "optim.recogniser.final=0"]
    again = senone.load(run("ctc", [*words, *still, f"init={tmp_path / 'one'}"], tmp_path / "two"))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def some(count: int, seed: int = 0) -> tuple[Store, list[list[int]]]:
    """Utterances of 1 to 15 seconds, as LibriSpeech has them, that no file holds."""
    lengths = np.random.default_rng(seed).uniform(1, 15, count)
    store = Store([Cut(str(k), f"{k}.wav", float(n)) for k, n in enumerate(lengths)], 100)
    for k, n in enumerate(store.cuts):
        store._kept[k] = np.full(round(n.seconds * 100), k + 1, np.int16)
    return store, [[k % 30 + 1] * (1 + k % 3) for k in range(count)]


def extra(rng, samples):
    return {"mask": rng.random(samples // 10) < 0.3}


def test_an_epoch_has_every_utterance_once_with_little_padding():
    store, tokens = some(400)
    data = Utterances(store, tokens, 60.0)
    for epoch in range(2):
        steps = range(epoch * len(data), (epoch + 1) * len(data))
        rows = [row for step in steps for row in data.rows(step)]
        assert sorted(rows) == list(range(400))
        padded = sum(len(data.rows(step)) * max(data.samples[data.rows(step)]) for step in steps)
        assert padded / data.samples.sum() < 1.15
        assert max(len(data.rows(step)) * max(data.samples[data.rows(step)]) for step in steps) <= 60 * 100 * 1.11
    assert data.rows(0) != data.rows(len(data)) and data.seconds == pytest.approx(store.seconds / len(data))
    seconds = [max(data.samples[data.rows(step)]) for step in range(len(data))]
    assert any(a > b for a, b in pairwise(seconds)) and any(a < b for a, b in pairwise(seconds))  # not by length


def test_batches_are_a_function_of_the_step_and_processes_share_them():
    store, tokens = some(40)
    one = Utterances(store, tokens, 40.0, extra, seed=3)
    for step in (0, 7, 31):
        batch, again = one.batch(step), next(one.stream(step))
        assert batch["step"] == step and all(torch.equal(batch[k], again[k]) for k in batch.keys() - {"step"})
        rows = one.rows(step)
        for i, row in enumerate(rows):
            n, count = int(batch["lengths"][i]), int(batch["sizes"][i])
            assert n == one.samples[row] and (batch["wave"][i, :n] * 32767).round().unique().tolist() == [row + 1]
            assert batch["targets"][i, :count].tolist() == tokens[row] and not batch["wave"][i, n:].any()
            assert not batch["mask"][i, n // 10 :].any()
        shares = [Utterances(store, tokens, 40.0, extra, seed=3, rank=rank, world=3).batch(step) for rank in range(3)]
        assert len({share["wave"].shape for share in shares}) == 1
        counting = {key: torch.cat([share[key][share["weight"] > 0] for share in shares]) for key in ("wave", "mask")}
        order = [row for rank in range(3) for row in range(rank, len(rows), 3)]
        assert all(torch.equal(counting[key], batch[key][order]) for key in counting)


def test_masks_do_not_depend_on_the_batch():
    store, tokens = some(40)
    masks = []
    for seconds in (20.0, 80.0):
        data = Utterances(store, tokens, seconds, extra)
        step = next(step for step in range(len(data)) if 5 in data.rows(step))
        place = data.rows(step).index(5)
        masks.append(data.batch(step)["mask"][place, : int(data.samples[5]) // 10])
    assert torch.equal(*masks) and masks[0].any()


def test_two_processes_have_the_loss_of_one(recipe, monkeypatch):
    """The share of each, summed as the loop does it, is what one process computes; here three rows, two processes."""
    from senone.train import parallel

    recipe = configs.override(recipe, ["mask_p=0", "channel_p=0"])
    recipe = replace(recipe, model=recipe.model | STILL)
    torch.manual_seed(0)
    task, data = prepare(recipe)
    batch = data.batch(0)
    assert len(batch["wave"]) == 3
    whole = task.losses(batch, "recogniser")["ctc"]
    shares = [Utterances(data.store, data.tokens, 4.0, data.extra, rank=rank, world=2).batch(0) for rank in range(2)]
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "total", lambda x: x.new_tensor(3.0))
    parts = [task.losses(share, "recogniser")["ctc"] for share in shares]
    assert float(sum(parts).detach() / 2) == pytest.approx(float(whole.detach()), rel=1e-5)
    assert shares[1]["weight"].tolist() == [1.0, 0.0]


def test_a_file_that_cannot_be_read_counts_for_nothing(recipe, spoken, tmp_path):
    (tmp_path / "noise.wav").write_text("no sound")
    rows = f"path\tseconds\ttext\nnoise.wav\t1.0\tbad\n{spoken}/two.wav\t0.8\tbad dad\n"
    (tmp_path / "manifest.tsv").write_text(rows)
    _, data = prepare(replace(recipe, data=str(tmp_path)))
    batch = data.batch(0)
    assert sorted(batch["weight"].tolist()) == [0.0, 1.0] and "noise.wav is not audio" in str(data.skipped)


def test_fewer_labels_are_a_part_of_more():
    store, _ = some(300)
    ten, hour = subset(store.cuts, 1 / 6), subset(store.cuts, 0.5)
    assert set(ten) < set(hour) and ten == subset(store.cuts, 1 / 6) and subset(store.cuts, 0) == store.cuts
    assert sum(cut.seconds for cut in ten) == pytest.approx(600, abs=15)
    with pytest.raises(DataError, match="9 hours are wanted, there are 0.71"):
        subset(store.cuts, 9)


def test_too_little_sound_for_the_text_is_left_out_and_listed(recipe, spoken, tmp_path):
    rows = f"path\tseconds\ttext\n{spoken}/one.wav\t0.2\t{'abcde' * 9}\n{spoken}/two.wav\t0.8\tbad dad\n"
    (tmp_path / "manifest.tsv").write_text(rows)
    _, data = prepare(replace(recipe, data=str(tmp_path)))
    assert len(data.tokens) == 1
    assert data.skipped == {f"{spoken}/one.wav": "0.2 s are too short for its transcript of 46 letters"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": ""}, "no data: say data="),
        ({"encoder": ""}, "no encoder: say encoder=NAME"),
        ({"encoder": "hubertt-base"}, "unknown model 'hubertt-base'; did you mean 'hubert-base'"),
        ({"vocabulary": "russian"}, "vocabulary must be english or transcripts, got 'russian'"),
        ({"model": {"widht": 3}}, "unknown config key 'encoder.widht'; did you mean 'width'"),
        ({"model": {"width": 48}}, "the encoder: 'masked_spec_embed' is .32,., the config says .48,."),
        ({"weights": {"ctcc": 1.0}}, "unknown loss 'ctcc' in weights; known: ctc"),
        ({"hours": 2.0}, "2 hours are wanted, there are 0.00"),
    ],
)
def test_bad_words_are_named(recipe, changes, said):
    with pytest.raises(SenoneError, match=said):
        prepare(replace(recipe, **changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ca3b", "two.wav: the vocabulary has no '3', which 'CA3B' needs"),
        (" - ", "no recording in .* has a transcript: a manifest needs a column 'text'"),
    ],
)
def test_bad_transcripts_are_named(recipe, spoken, tmp_path, text, said):
    (tmp_path / "manifest.tsv").write_text(f"path\tseconds\ttext\n{spoken}/two.wav\t0.8\t{text}\n")
    with pytest.raises(DataError, match=said):
        prepare(replace(recipe, data=str(tmp_path)))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("ctc-*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_short_and_fit(path):
    values = configs.read_yaml(path)
    plain = configs.to_dict(CTCRecipe())
    optim = plain["optim"]["recogniser"] | values.get("optim", {}).get("recogniser", {})
    recipe = configs.from_dict(CTCRecipe, plain | values | {"optim": {"recogniser": optim}})
    assert len(path.read_text().splitlines()) <= 25 and recipe.optim["recogniser"].schedule == "tri-stage"
    same = [key for key, value in values.items() if plain[key] == value]
    assert not same, f"{same} repeat the defaults"
    assert len(ENGLISH) == 32 and recipe.freeze < recipe.steps
