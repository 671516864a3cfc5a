"""senone: discrete units of speech. Tokens are a function of the audio, and nothing else."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from senone.audio import Audio
    from senone.codes import Codes
    from senone.hub import load
    from senone.lm import LanguageModel
    from senone.tokenizer import AudioTokenizer

__all__ = ["Audio", "AudioTokenizer", "Codes", "LanguageModel", "load"]

try:
    __version__ = version("senone")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"

_HOME = {"Audio": "audio", "AudioTokenizer": "tokenizer", "Codes": "codes", "LanguageModel": "lm", "load": "hub"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import senone` and `senone --help` load no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'senone' has no attribute {name!r}")
    return getattr(import_module(f"senone.{_HOME[name]}"), name)
