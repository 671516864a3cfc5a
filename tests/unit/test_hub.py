"""Models by name, folder and file; what is stored is what is loaded."""

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import senone
from senone import hub
from senone.hub import HubError, Pretrained, fingerprint, load, names, user_class
from senone.models.soundstream import Config, SoundStream

ROOT = Path(__file__).parents[2]
MYCODEC = f"{ROOT}/examples/mycodec.py:MyCodec"
SMALL = Config(encoder_filters=2, decoder_filters=2, strides=(2, 4), dim=8, levels=2, size=16)


@dataclass(frozen=True)
class Options:
    width: int = 4
    depth: int = 1


class Net(nn.Module, Pretrained):
    Config, model_type = Options, "net"

    def __init__(self, config: Options = Options()) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, config.width)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("large", torch.tensor([1e6]))


def test_saved_and_loaded_is_equal_in_every_bit(tmp_path):
    net = Net(Options(width=5))
    net.save_pretrained(tmp_path, {"license": "MIT"})
    again = Net.from_pretrained(tmp_path)
    assert again.config == Options(width=5) and not again.training
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "net", "width": 5, "depth": 1}


def test_half_precision_is_half_the_size_and_rounds_once(tmp_path):
    net = Net(Options(width=64))
    net.save_pretrained(tmp_path / "full")
    net.save_pretrained(tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["linear.weight"].dtype == torch.float16 and stored["large"].dtype == torch.float32
    half = Net.from_pretrained(tmp_path / "half")
    assert half.linear.weight.dtype == torch.float32
    torch.testing.assert_close(half.linear.weight, net.linear.weight, rtol=1e-3, atol=1e-6)
    seen = {fingerprint(half)}
    for i, how in enumerate((True, False, True)):
        half.save_pretrained(tmp_path / str(i), half=how)
        half = Net.from_pretrained(tmp_path / str(i))
        seen.add(fingerprint(half))
    assert len(seen) == 1 and fingerprint(net) not in seen


def test_a_weight_too_large_for_half_precision_is_refused(tmp_path):
    net = Net()
    nn.init.constant_(net.linear.bias, 1e5)
    with pytest.raises(HubError, match="'linear.bias' does not fit into half precision"):
        net.save_pretrained(tmp_path, half=True)
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_is_of_weights_and_facts():
    net = Net()
    before = fingerprint(net, 1)
    assert fingerprint(net, 1) == before != fingerprint(net, 2) and len(before) == 16
    net.linear.weight.data[0, 0] += 1e-6
    assert fingerprint(net, 1) != before


def test_a_config_that_changes_codes_but_no_weight_changes_the_fingerprint():
    from senone.models.spectral import Config as SpectralConfig
    from senone.models.spectral import Spectral

    prints = set()
    for steps in ((8, 8, 8, 8), (16, 16, 4, 4)):
        torch.manual_seed(0)
        small = {"encoder_dim": 8, "encoder_blocks": 1, "decoder_dim": 8, "decoder_blocks": 1, "hop": 8}
        prints.add(Spectral(SpectralConfig(steps=steps, **small)).spec.fingerprint)
    assert len(prints) == 2


def test_a_bundled_model_loads_by_name(tmp_path, monkeypatch):
    """A folder under weights/ with config, weights and a model card is all that a name needs."""
    monkeypatch.setattr(hub, "BUNDLED", tmp_path)
    model = SoundStream(SMALL)
    folder = model.save_pretrained(tmp_path / "tiny-mini", half=True)
    (folder / "README.md").write_text("# tiny-mini\n")
    (tmp_path / "no-model").mkdir()
    assert names() == ["tiny-mini", *hub.PRESETS]
    loaded = senone.load("tiny-mini")
    assert isinstance(loaded, SoundStream) and loaded.config == SMALL and not loaded.training
    assert senone.load("tiny-mini").spec == loaded.spec == senone.load(folder).spec
    with pytest.raises(HubError, match="unknown model 'tiny-mono'; did you mean 'tiny-mini'?"):
        load("tiny-mono")


def test_loading_throws_no_dice_and_keeps_what_no_file_holds(tmp_path):
    """A model is built without memory where its file has all; the buffers of Spectral's quantizer are in no file."""
    from senone.models.spectral import Config as SpectralConfig
    from senone.models.spectral import Spectral

    tiny = SpectralConfig(hop=8, encoder_dim=8, encoder_blocks=1, decoder_dim=8, decoder_blocks=1)
    for model in (SoundStream(SMALL), Spectral(tiny), user_class(MYCODEC)()):
        model.save_pretrained(tmp_path)
        state = torch.get_rng_state()
        again = type(model).from_pretrained(tmp_path)
        assert torch.equal(torch.get_rng_state(), state)
        assert again.spec == model.eval().spec
        for (name, value), (_, before) in zip(again.named_buffers(), model.named_buffers(), strict=True):
            assert torch.equal(value, before), name


@pytest.mark.parametrize("name", [name for name in names() if name not in hub.PRESETS])
def test_every_bundled_model_is_small_documented_and_loads(name):
    folder = hub.BUNDLED / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    model = load(name)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    own = model.spec.fingerprint if hasattr(model, "spec") else hub.fingerprint(model)
    assert own in (folder / "README.md").read_text()


def test_a_preset_warns_of_its_random_weights_which_are_the_same_every_time():
    with pytest.warns(UserWarning, match="'soundstream-16k' has random weights"):
        one = load("soundstream-16k")
    torch.rand(1)
    with pytest.warns(UserWarning):
        two = load("soundstream-16k")
    assert one.spec == two.spec and one.spec.sample_rate == 16000


def test_a_class_of_ones_own_with_and_without_its_weights(tmp_path):
    kind = user_class(MYCODEC)
    model = kind(kind.Config(dim=16, levels=2))
    model.save_pretrained(tmp_path / "mine")
    again = load(f"{MYCODEC}@{tmp_path}/mine")
    assert again.spec == model.spec and again.config.dim == 16
    assert load(MYCODEC).config.dim == 128


def test_a_class_of_ones_own_that_is_not_there_or_not_complete(tmp_path):
    with pytest.raises(HubError, match="nowhere.py does not exist"):
        load(f"{tmp_path}/nowhere.py:MyCodec")
    with pytest.raises(HubError, match="unknown class in .*mycodec.py 'MyCodek'; did you mean 'MyCodec'?"):
        load(MYCODEC[:-1] + "k")
    (tmp_path / "bare.py").write_text("class Bare:\n    pass\n")
    with pytest.raises(HubError, match="bare.py:Bare needs an attribute Config"):
        load(f"{tmp_path}/bare.py:Bare")


def edit(path: Path, **changes) -> None:
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def test_broken_folders_name_the_file_and_the_key(tmp_path):
    good = SoundStream(SMALL).save_pretrained(tmp_path / "good")

    def spoil(name, change, match):
        folder = shutil.copytree(good, tmp_path / name)
        change(folder)
        with pytest.raises(ValueError, match=match):
            load(folder)

    spoil("a", lambda f: (f / "config.json").unlink(), "a has no config.json")
    spoil("b", lambda f: (f / "model.safetensors").unlink(), "b has no model.safetensors")
    spoil("c", lambda f: (f / "config.json").write_text("{"), "c/config.json cannot be read")
    spoil("d", lambda f: (f / "config.json").write_text("[]"), "d/config.json must hold one JSON object")
    spoil("e", lambda f: edit(f / "config.json", model_type="senone_soundsteam"), "did you mean 'senone_soundstream'")
    spoil("f", lambda f: edit(f / "config.json", dimm=3), "f/config.json: unknown config key 'dimm'; did you")
    spoil("g", lambda f: edit(f / "config.json", dim=16), "'decoder.0.weight' is .* the config says")
    spoil("h", lambda f: edit(f / "config.json", levels=3), "lacks 3 weights, first 'quantizer.books.2.cluster_usage'")
    spoil("i", lambda f: edit(f / "config.json", levels=1), "has unknown 3 weights, first 'quantizer.books.1")
    spoil("j", lambda f: (f / "model.safetensors").write_bytes(b"\0" * 20), "j/model.safetensors cannot be read")
    with pytest.raises(HubError, match="holds a 'senone_soundstream', not a 'net'"):
        Net.from_pretrained(good)
    with pytest.raises(HubError, match="is not a model directory"):
        load(f"{tmp_path}/nothing/there")


def test_failed_saving_leaves_the_old_model(tmp_path, monkeypatch):
    net = Net()
    net.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HubError, match="cannot write .*No space left on device"):
        Net().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match="cannot write"):
        net.save_pretrained(tmp_path / "file")
