"""The public surface, pinned: a change here is a change for users, to be made on purpose."""

import subprocess
import sys

import pytest

import senone

HEAVY = ("torch", "numpy", "soundfile", "safetensors", "huggingface_hub", "hypothesis")

AUDIO_TOKENIZER = {
    # the author's
    "analyse", "synthesise", "quantizer", "causal", "context", "block", "delay", "exact", "ragged",
    "sample_rate", "hop",
    # and what follows
    "encode", "decode", "stream", "resume", "spec", "decodes", "latency", "flush", "levels_for", "config",
    "from_pretrained", "save_pretrained", "push_to_hub", "Config", "model_type", "forward",
}  # fmt: skip
METHODS = {
    "senone.audio:Audio": {"wave", "rate", "seconds", "read", "save", "mono", "resample", "normalise"},
    "senone.codes:Codes": {"data", "samples", "spec", "levels", "seconds", "save", "load"},
    "senone.codes:CodeSpec": {
        "sample_rate", "hop", "sizes", "fingerprint", "frame_rate", "token_rate", "bitrate", "frames"
    },
    "senone.tokenizer:AudioTokenizer": AUDIO_TOKENIZER,
    "senone.tokenizer:Stream": {"encode", "decode", "latency", "save"},
    "senone.lm:LanguageModel": {
        "vocab", "bos", "forward", "scored", "score", "config",
        "from_pretrained", "save_pretrained", "push_to_hub", "Config", "model_type",
    },
    "senone.testing:Law": {"name", "ok", "detail"},
}  # fmt: skip


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_names_of_the_package():
    assert sorted(senone.__all__) == ["Audio", "AudioTokenizer", "Codes", "LanguageModel", "load"]
    assert all(getattr(senone, name).__name__ == name for name in senone.__all__)
    assert senone.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Audi'"):
        senone.Audi  # noqa: B018


def test_importing_senone_imports_nothing_heavy():
    code = f"import sys, senone; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]"
    assert python("from senone import Audio; import sys; print('torch' in sys.modules)") == "True"


def test_hypothesis_is_imported_only_when_laws_are_tried():
    assert python("import sys, senone.testing; print('hypothesis' in sys.modules)") == "False"


@pytest.mark.parametrize("name", METHODS)
def test_the_members_of_the_values(name):
    from importlib import import_module

    module, _, attribute = name.partition(":")
    kind = getattr(import_module(module), attribute)
    own = [base for base in kind.__mro__ if base.__module__.startswith("senone")]
    members = {key for base in own for key in (*vars(base), *base.__dict__.get("__annotations__", {}))}
    assert {key for key in members if not key.startswith("_")} == METHODS[name]


def test_every_error_is_a_senone_error():
    """So that the command line can print one sentence for each."""
    from senone import audio, codes, config, errors, hub, lm, tree

    for kind in (audio.AudioError, codes.CodesError, config.ConfigError, hub.HubError, lm.LMError, tree.TreeError):
        assert issubclass(kind, errors.SenoneError) and kind.__doc__
