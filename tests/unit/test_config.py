from dataclasses import dataclass, field

import pytest

from senone.config import ConfigError, from_dict, override, read_yaml, to_dict


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class Recipe:
    steps: int = 10
    strides: tuple[int, ...] = (2, 4)
    optim: Optim = field(default_factory=Optim)
    weights: dict[str, float] = field(default_factory=dict)
    name: str | None = None


def test_round_trip_restores_tuples_and_nesting():
    recipe = Recipe(strides=(2, 5, 8), optim=Optim(lr=0.1), weights={"mel": 15.0}, name="x")
    assert from_dict(Recipe, to_dict(recipe)) == recipe


def test_override_reads_yaml_values_at_dotted_keys():
    recipe = override(Recipe(), ["optim.lr=3e-4", "steps=20", "strides=[8]", "weights.mel=2"])
    assert recipe == Recipe(20, (8,), Optim(lr=3e-4), {"mel": 2.0})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"step": 1}, "unknown config key 'step'; did you mean 'steps'?"),
        ({"optim": {"lrr": 1}}, "unknown config key 'optim.lrr'; did you mean 'lr'?"),
        ({"steps": "many"}, "config key 'steps' needs int, got 'many'"),
        ({"steps": True}, "config key 'steps' needs int, got True"),
        ({"optim": {"betas": [0.9]}}, "config key 'optim.betas' needs 2 values, got 1"),
        ({"optim": 3}, "config key 'optim.' needs a table of keys, got 3"),
    ],
)
def test_mistakes_name_the_key(values, sentence):
    with pytest.raises(ConfigError) as error:
        from_dict(Recipe, values)
    assert str(error.value) == sentence


def test_yaml_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match="missing.yaml"):
        read_yaml(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="bad.yaml is not YAML"):
        read_yaml(tmp_path / "bad.yaml")
