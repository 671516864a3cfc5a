"""Units as a tokenizer, and their labels: frames, windows, laws, provenance, files."""

import copy
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch

from senone import features, hub, load
from senone.audio import Audio
from senone.config import ConfigError
from senone.data import fairseq
from senone.data.labels import Labels, LabelsError, Provenance, Writer, key
from senone.data.manifest import Cut, DataError
from senone.data.units import label, learn, vectors
from senone.models.hubert import Config as HubertConfig
from senone.models.hubert import Hubert
from senone.models.units import MFCC, Config, Discriminant, DiscriminantConfig, Units, UnitsError
from senone.quantize.kmeans import fit
from senone.testing import laws

TINY = HubertConfig(channels=(8,) * 7, width=16, layers=2, heads=2, hidden=32, pos_kernel=16, pos_groups=2)


def sound(seconds: float, seed: int = 0) -> Audio:
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(round(seconds * 16000), generator=random)
    loud = torch.rand(len(noise) // 1600 + 1, generator=random).repeat_interleave(1600)[: len(noise)]
    return Audio((0.3 * loud * noise.cumsum(0).sin() + 0.05 * noise)[None], 16000)


def units(encoder=None, layer=None, clusters=24, block=0.5, context=0.1) -> Units:
    """With centroids that are frames of what it hears."""
    encoder = encoder or MFCC()
    config = replace(Units.of(encoder, clusters, layer).config, block=block, context=context)
    made = Units(config, encoder)
    z = made.analyse(sound(6).wave[None])[0][0].T
    made.quantizer.centroids.copy_(fit([z], clusters, starts=1, patience=2).centroids)
    return made


@pytest.fixture(scope="module")
def hubert() -> Hubert:
    torch.manual_seed(0)
    return Hubert(TINY).eval()


@pytest.fixture
def cuts(tmp_path) -> list[Cut]:
    found = []
    for i, seconds in enumerate((1.3, 0.7, 2.01)):
        sound(seconds, i).save(tmp_path / f"{i}.wav")
        found.append(Cut(f"u{i}", str(tmp_path / f"{i}.wav"), seconds))
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_units_of_an_encoder_keep_the_laws(hubert, exact):
    model = units(hubert, 1)
    model.exact = exact
    results = list(laws(model, examples=6))
    assert [law for law in results if not law.ok] == []
    assert int(next(law.detail for law in results if law.name == "chunks").split()[2]) > 5  # different codes


def test_units_of_mfcc_keep_the_laws():
    assert [law for law in laws(units(), examples=6) if not law.ok] == []


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 319, 320, 321, 400, 16000, 16001])
def test_a_frame_for_every_hop_around_its_middle(hubert, samples):
    for model in (units(), units(hubert, 2)):
        assert model.encode(sound(samples / 16000)).data.shape == (1, 1, -(-samples // model.hop))
    wave = torch.zeros(1, 1, 3200)
    wave[0, 0, 10 * 160 + 80] = 1.0  # the middle of frame 10
    energy = units().analyse(wave)[0][0, 0]
    assert int(energy.argmax()) == 10


def test_windows_of_blocks(hubert):
    """Block k is what `features` says from context before it to context after it."""
    model, audio = units(hubert, 2, block=1.0, context=0.2), sound(2.9)
    z = torch.cat(list(vectors(model, audio.wave.split(777, 1))))
    wave, parts = audio.wave, []
    for start, end, first, last in ((0, 19200, 0, 50), (12800, 35200, 10, 60), (28800, 46400, 10, 55)):
        piece = torch.nn.functional.pad(wave[:, start:end], (40, 40))
        parts.append(hubert.features(piece, layer=2)[0, first:last])
    assert torch.equal(z, torch.cat(parts))
    assert torch.equal(model.quantizer.encode(z.T[None]), model.encode(audio).data)


@pytest.mark.parametrize("seconds, windows", [(1.2, 1), (1.21, 2), (2.2, 2), (2.21, 3)])
def test_a_recording_of_a_block_and_its_future_is_one_window(seconds, windows):
    """So the end never stands alone: it is longer than the context after a block."""
    model = units(block=1.0, context=0.2)
    ends = [0, *(end for _, _, end in model._windows(round(100 * seconds), 0, True))]
    lengths = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    assert len(lengths) == windows and min(lengths) > 20 and sum(lengths) == round(100 * seconds)


def test_latency_is_what_a_stream_takes():
    model = units(block=1.0, context=0.2)
    session, heard = model.stream(), 0
    while not session.encode(torch.zeros(1, 160)).data.numel():
        heard += 160
    assert heard + 160 == round(model.latency * 16000) and session.latency == pytest.approx(1.21)


def test_mfcc_is_kaldis_and_knows_no_layers():
    wave = torch.stack([sound(1.0).wave[0], sound(1.0, 1).wave[0]])
    assert torch.equal(MFCC().features(wave), features.mfcc(wave))
    short = MFCC().features(wave, torch.tensor([16000, 4000]))
    torch.testing.assert_close(short[1, :23], features.mfcc(wave[1:, :4000])[0])
    assert not short[1, 23:].any()
    with pytest.raises(UnitsError, match="no layer 3"):
        MFCC().features(wave, layer=3)


def test_saved_with_their_encoder(hubert, tmp_path):
    model, audio = units(hubert, 1), sound(1.5)
    again = hub.load(model.save_pretrained(tmp_path / "units"))
    assert isinstance(again.encoder, Hubert) and again.config == model.config and not again.decodes
    assert torch.equal(again.encode(audio).data, model.encode(audio).data)
    assert (again.teacher, again.centroids) == (model.teacher, model.centroids)
    settings = json.loads((tmp_path / "units" / "config.json").read_text())
    assert settings["encoder"]["model_type"] == "senone_hubert" and settings["layer"] == 1
    (tmp_path / "units" / "config.json").write_text(json.dumps(settings | {"encoder": {"model_type": "senone_mfc"}}))
    with pytest.raises(hub.HubError, match="did you mean 'senone_mfcc'"):
        hub.load(tmp_path / "units")


def test_fingerprints_are_of_their_parts(hubert):
    one, two = units(hubert, 1), units(hubert, 2)
    assert one.teacher == two.teacher and one.centroids != two.centroids and one.spec != two.spec
    other = copy.deepcopy(one)
    other.encoder.masked_spec_embed.data += 1
    assert other.teacher != one.teacher and other.centroids == one.centroids


def test_dropout_stays_off(hubert):
    model, audio = units(hubert, 2), sound(1)
    codes = model.encode(audio)
    assert torch.equal(model.train().encode(audio).data, codes.data) and not model.encoder.training


def test_what_is_no_encoder_is_told():
    with pytest.raises(UnitsError, match="Linear is no encoder"):
        Units.of(torch.nn.Linear(1, 1), 5)  # type: ignore[arg-type]
    with pytest.raises(UnitsError, match=r"centroids are \(5, 13\), the encoder's features need \(5, 39\)"):
        Units.of(MFCC(), torch.zeros(5, 13))


def test_learn_is_fit_on_the_features_of_recordings(cuts, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    heard = []
    model, fitted = learn(
        [*cuts, Cut("bad", str(tmp_path / "bad.wav"), 1)],
        MFCC(),
        10,
        heard=lambda cut, why: heard.append((cut.id, why)),
    )
    assert fitted.frames == 131 + 70 + 201 - 1 and torch.equal(model.quantizer.centroids, fitted.centroids)
    assert sorted(name for name, why in heard if why is None) == ["u0", "u1", "u2"]
    assert ["bad.wav is not audio" in why for name, why in heard if name == "bad"] == [True]
    few, part = learn(cuts, MFCC(), 10, hours=0.5 / 3600, seed=1)
    assert part.frames in (130, 70, 201) and few.spec != model.spec


def test_labels_are_units_of_files_and_of_parts_of_them(cuts, tmp_path):
    model = units()
    with Writer(tmp_path / "x.safetensors", Provenance.of(model, "cuts")) as writer:
        part = replace(cuts[2], id="part", start=0.5, seconds=0.25)
        for cut in (*cuts, part):
            writer.write(cut, label(cut, model).numpy())
    labels = Labels.load(tmp_path / "x.safetensors")
    for cut in cuts:
        assert torch.equal(torch.from_numpy(labels[cut].astype(int)), model.encode(Audio.read(cut.path)).data[0, 0])
        assert np.array_equal(labels[cut.path], labels[cut])
    assert len(labels[part]) == 25 and len(labels) == 4 and labels.clusters == 24
    assert labels.frame_rate == Fraction(100) and isinstance(labels[0].base, np.memmap)
    labels.covers([*cuts, part])
    assert sorted(path.name for path in tmp_path.glob(".x*")) == []


PROVENANCE = Provenance("t", 6, 50, "c", "50/1", "u")


def written(path, rows: dict[Cut, list[int]], provenance=PROVENANCE) -> Labels:
    with Writer(path, provenance) as writer:
        for cut, row in rows.items():
            writer.write(cut, np.array(row))
    return Labels.load(path)


def test_a_writer_goes_on_where_it_was_stopped(tmp_path):
    cuts, path = [Cut(f"u{i}", f"{i}.wav", 0.1) for i in range(4)], tmp_path / "x.safetensors"
    rows = [np.arange(i, i + 5) for i in range(4)]
    with pytest.raises(KeyboardInterrupt), Writer(path, PROVENANCE) as writer:
        for cut, row in zip(cuts[:2], rows, strict=False):
            writer.write(cut, row)
        raise KeyboardInterrupt
    assert not path.exists()
    with open(tmp_path / ".x.safetensors.part", "a") as file:
        file.write('{"key": "half a li')
    with pytest.raises(LabelsError, match="run with another teacher"), Writer(path, replace(PROVENANCE, teacher="s")):
        pass
    with Writer(path, PROVENANCE) as writer:
        assert [cut in writer for cut in cuts] == [True, True, False, False]
        for cut, row in zip(cuts[2:], rows[2:], strict=True):
            writer.write(cut, row)
    labels = Labels.load(path)
    assert [labels[cut].tolist() for cut in cuts] == [row.tolist() for row in rows]
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_labels_of_another_teacher_are_refused(tmp_path):
    labels = written(tmp_path / "x", {Cut("a", "a.wav", 0.1): [1, 2, 3, 4, 5]})
    labels.accept(replace(PROVENANCE, data="other lists"))
    with pytest.raises(LabelsError, match="labels of another teacher: teacher t, not s"):
        labels.accept(replace(PROVENANCE, teacher="s"))
    with pytest.raises(LabelsError, match="labels of another teacher: centroids c, not d"):
        labels.accept(replace(PROVENANCE, centroids="d"))
    with pytest.raises(LabelsError, match="labels on another clock: rate 50/1, not 100/1"):
        labels.accept(replace(PROVENANCE, rate="100/1"))


def test_labels_that_do_not_fit_the_recordings_are_refused(tmp_path):
    a, b = Cut("a", "a.wav", 1.0), Cut("b", "b.wav", 1.0)
    labels = written(tmp_path / "x", {a: list(range(50)), b: [7] * 50})
    labels.covers([a, b])
    with pytest.raises(LabelsError, match="constant: all labels are 7"):
        labels.covers([b])
    with pytest.raises(LabelsError, match="no labels for c.wav"):
        labels.covers([a, Cut("c", "c.wav", 1.0)])
    with pytest.raises(LabelsError, match="50 labels for a.wav: 2 s at 50 a second make 100"):
        labels.covers([replace(a, seconds=2.0)])
    moved = replace(a, path="elsewhere/a.wav")
    assert np.array_equal(labels[moved], labels[a]) and "elsewhere/a.wav" not in labels
    with pytest.raises(LabelsError, match="not all from 0 to 49"):
        written(tmp_path / "y", {a: [50]})
    with pytest.raises(LabelsError, match="2 to 32768 clusters, not 40000"):
        replace(PROVENANCE, clusters=40000)


def test_an_id_of_two_recordings_finds_neither(tmp_path):
    labels = written(tmp_path / "x", {Cut("a", "1/a.wav", 0.1): [1, 2], Cut("a", "2/a.wav", 0.1): [3, 4]})
    assert Cut("a", "3/a.wav", 0.1) not in labels and labels["2/a.wav"].tolist() == [3, 4]
    assert key(Cut("a", "/x/a.wav", 1.0, start=2.5)) == "/x/a.wav@2.5"


def test_files_that_hold_no_labels_are_told(tmp_path):
    (tmp_path / "text").write_text("no labels in here")
    MFCC().save_pretrained(tmp_path / "model")
    for name, sentence in (
        ("gone", "does not exist"),
        ("text", "is not a file of"),
        ("model/model.safetensors", "holds no"),
    ):
        with pytest.raises(LabelsError, match=f"{name} {sentence}"):
            Labels.load(tmp_path / name)
    written(tmp_path / "x", {Cut("a", "a.wav", 0.1): [1, 2, 3]})
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[:-2])
    with pytest.raises(LabelsError, match="x is not a file of labels"):
        Labels.load(tmp_path / "x")
    with pytest.raises(LabelsError, match="cannot write"):
        written(tmp_path / "no" / "x", {})
    with pytest.raises(LabelsError, match="not from a Linear"):
        Provenance.of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("hop, frames", [(160, 98), (320, 49)])
def test_labels_of_fairseq_come_and_go(tmp_path, hop, frames):
    """fairseq's frame j is centred at hop j + 200; whoever asks for that sample gets the label of frame j."""
    for name, samples in (("a/1.wav", 16000), ("2.wav", 24000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(samples), 16000)
    rows = [np.arange(frames), np.arange((24000 - 400) // hop + 1) % 90]
    (tmp_path / "train.km").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na/1.wav\t16000\n2.wav\t24000\n")
    (tmp_path / "dict.km.txt").write_text("".join(f"{i} 1\n" for i in range(100)))
    labels = fairseq.read_labels(tmp_path / "train.km", tmp_path / "train.tsv", tmp_path / "x")
    ours = labels[tmp_path / "2.wav"]
    assert labels.clusters == 100 and labels.frame_rate == 16000 // hop and len(ours) == 24000 / hop
    assert [ours[(hop * j + 200) // hop] for j in range(len(rows[1]))] == rows[1].tolist()
    (tmp_path / "out").mkdir()
    fairseq.write_labels(labels, tmp_path / "out", "train")
    assert (tmp_path / "out/train.km").read_text() == (tmp_path / "train.km").read_text()
    assert (tmp_path / "out/dict.km.txt").read_text() == (tmp_path / "dict.km.txt").read_text()
    root, *lines = (tmp_path / "out/train.tsv").read_text().splitlines()
    assert [f"{root}{line}" for line in lines] == [f"{tmp_path}/a/1.wav\t16000", f"{tmp_path}/2.wav\t24000"]
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na/1.wav\t16000\n2.wav\t48000\n")
    with pytest.raises(LabelsError, match="neither at 100 nor at 50"):
        fairseq.read_labels(tmp_path / "train.km", tmp_path / "train.tsv", tmp_path / "y")


def test_features_of_fairseq_come_and_go(tmp_path):
    pieces = [torch.randn(n, 5) for n in (3, 0, 7)]
    fairseq.write_features(tmp_path / "x", pieces)
    assert np.array_equal(np.load(tmp_path / "x.npy"), torch.cat(pieces).numpy())
    assert (tmp_path / "x.len").read_text() == "3\n0\n7\n"
    for mine, back in zip(pieces, fairseq.read_features(tmp_path / "x"), strict=True):
        assert torch.equal(mine, back)


def test_the_default_config_is_a_tokenizer():
    model = Units(Config())
    assert model.encode(sound(0.5)).data.shape == (1, 1, 50)
    assert model.spec.frame_rate == 100 and model.latency == pytest.approx(35.01)


def test_features_are_frames_in_a_row_standardised_and_projected():
    directions = torch.randn(5 * 39, 7)
    encoder = Discriminant.of(MFCC(), directions=directions, around=2)
    wave = sound(1.0).wave
    x = MFCC().features(wave)[0]
    x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    rows = [torch.stack([x[min(max(t + k, 0), len(x) - 1)] for k in range(-2, 3)], 1).flatten() for t in range(len(x))]
    torch.testing.assert_close(encoder.features(wave)[0], torch.stack(rows) @ directions, rtol=1e-4, atol=1e-3)
    whole = Discriminant.of(MFCC(), around=2).features(wave)
    torch.testing.assert_close(whole @ directions, encoder.features(wave))


def test_a_short_row_of_a_batch_has_the_features_it_has_alone():
    encoder = Discriminant.of(MFCC(), directions=torch.randn(7 * 39, 5))
    wave = torch.cat([sound(1.0).wave, sound(1.0, 1).wave])
    both = encoder.features(wave, torch.tensor([16000, 7000]))
    assert torch.equal(both[:1], encoder.features(wave[:1]))
    alone = encoder.features(wave[1:, :7000])
    assert torch.equal(both[1:, : alone.shape[1]], alone) and not both[1, alone.shape[1] :].any()


def test_units_of_a_discriminant_keep_the_laws_and_come_back(tmp_path):
    torch.manual_seed(0)
    for encoder, layer in ((MFCC(), None), (Hubert(TINY).eval(), 1)):
        stack = 7 * (39 if layer is None else 16)
        model = units(Discriminant.of(encoder, layer, torch.randn(stack, 6)))
        assert [law for law in laws(model, examples=4) if not law.ok] == []
        model.save_pretrained(tmp_path / "units")
        again = load(tmp_path / "units")
        assert again.config == model.config and again.spec.fingerprint == model.spec.fingerprint
        assert torch.equal(again.encode(sound(1.0)).data, model.encode(sound(1.0)).data)


def test_rounds_find_what_tells_clusters_apart(cuts):
    told = []
    made, fitted = learn(cuts, MFCC(), 8, rounds=2, heard=lambda cut, why: told.append((cut.id, why)))
    assert isinstance(made.encoder, Discriminant) and made.encoder.directions.shape == (273, 40)
    assert len(told) == 3 * 5 and {why for _, why in told} == {None}
    z = made.analyse(sound(1.3).wave[None])[0][0].T
    assert float((z - made.quantizer.decode(made.quantizer.encode(z.T[None]))[0].T).square().sum(1).mean()) < float(
        z.var(0).sum()
    )
    again, _ = learn(cuts, MFCC(), 8, rounds=2)
    assert again.spec.fingerprint == made.spec.fingerprint
    assert fitted.frames == sum(round(100 * cut.seconds) for cut in cuts)


def test_what_cannot_be_is_refused(cuts):
    with pytest.raises(UnitsError, match="no layer 2"):
        Discriminant.of(MFCC()).features(torch.zeros(1, 16000), layer=2)
    with pytest.raises(ConfigError, match="around"):
        Discriminant(DiscriminantConfig(around=-1))
    with pytest.raises(ConfigError, match="width"):
        Discriminant(DiscriminantConfig(width=0))
    with pytest.raises(DataError, match="rounds must be at least 0"):
        learn(cuts, MFCC(), 8, rounds=-1)
