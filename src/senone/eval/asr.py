"""Word and letter error rates by recognisers, each under its own name: HuBERT-large (Table 1), Whisper, Moonshine."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from senone.ctc.beam import greedy
from senone.ctc.transcribe import load
from senone.eval import words
from senone.eval.metrics import RATE, Column, Item, Metric, Plain, folder
from senone.eval.neural import remembered
from senone.eval.whisper import TOKENS, whisper
from senone.interop import InteropError

Transcribe = Callable[[np.ndarray], str]
HUBERT = "hubert-large-ls960-ft"
MOONSHINE = tuple(f"moonshine-tiny-{part}" for part in ("encoder.ort", "decoder.ort", "tokenizer.bin"))
BEGIN, END, LAYERS, HEADS, WIDTH = 1, 2, 6, 8, 36
TOKENS_PER_SECOND = 6.5  # Moonshine's own limit, against endless repetition


def _rate(
    name: str,
    model: str,
    hear: Callable[[Path], Transcribe],
    files: tuple[str, ...],
    licence: str,
    source: str,
    packages: tuple[str, ...] = (),
    normal: str = "whisper",
) -> Metric:
    """WER or CER, as `name` begins; `hear` gives the recogniser whose files lie in a folder."""
    letters = name.startswith("cer")
    title = f"{'CER' if letters else 'WER'} % ({model})"
    column = Column(name, title, "lower", 2, 100.0, ratio=True, heavy=True, licence=licence, source=source)

    def score(item: Item) -> tuple[float, float]:
        words.count(item.text, "", normal)  # without a text there is nothing to hear for
        return words.count(item.text, hear(folder())(item.deg), normal, letters=letters)

    packages = tuple(filter(None, (words.NORMALISERS[normal], *packages)))
    return Plain(column, score, packages, files, f"1 normal={normal}")


def _hubert(name: str) -> Callable[[], Metric]:
    source = "huggingface.co/facebook/hubert-large-ls960-ft, the whole directory"
    return partial(_rate, name, "HuBERT-large", hubert, (HUBERT,), "Apache-2.0", source)


def _whisper(name: str, size: str) -> Callable[[], Metric]:
    source = f"openai/whisper: its {size}.pt, and whisper/assets/{TOKENS}"
    file = f"whisper-{size}.pt"
    return partial(_rate, name, f"Whisper {size}", partial(whisper, name=file), (file, TOKENS), "MIT", source)


def _moonshine(name: str) -> Callable[[], Metric]:
    source = "tiny-en/* of the wheel moonshine-voice 0.0.65"
    return partial(_rate, name, "Moonshine tiny", moonshine, MOONSHINE, "MIT", source, ("onnxruntime",))


@cache
def hubert(folder: Path) -> Transcribe:
    """Any recogniser of ours, greedily; here that of `folder`/hubert-large-ls960-ft. Raises HubError or CTCError."""
    model = load(str(folder / HUBERT))

    @torch.no_grad()
    def transcribe(wave: np.ndarray) -> str:
        logits = model.logits(torch.from_numpy(wave)[None])[0]
        return greedy(logits.float().log_softmax(-1), model.config.vocabulary).text

    return remembered(transcribe)


@cache
def moonshine(folder: Path) -> Transcribe:
    """Moonshine tiny (English, 27 M parameters; Jeffries et al. 2024), greedily, by onnxruntime."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    encoder, decoder = (onnxruntime.InferenceSession(str(folder / name), options) for name in MOONSHINE[:2])
    spelled = pieces((folder / MOONSHINE[2]).read_bytes())
    sides = ("decoder", "encoder")
    names = [f"{n}.{side}.{part}" for n in range(LAYERS) for side in sides for part in ("key", "value")]

    def transcribe(wave: np.ndarray) -> str:
        mask = np.ones((1, len(wave)), np.int64)
        hidden = encoder.run(None, {"input_values": wave[None], "attention_mask": mask})[0]
        past = {name: np.zeros((1, HEADS, 0, WIDTH), np.float32) for name in names}
        tokens = [BEGIN]
        for step in range(int(TOKENS_PER_SECOND * len(wave) / RATE) + 1):
            feed = {
                "input_ids": np.array([tokens[-1:]]),
                "encoder_hidden_states": hidden,
                "encoder_attention_mask": mask,
                "use_cache_branch": np.array([step > 0]),
            }
            logits, *present = decoder.run(None, feed | {f"past_key_values.{name}": past[name] for name in names})
            new = dict(zip(names, present, strict=True))
            # the keys of the encoder are computed in the first step only
            past = {name: new[name] if ".decoder." in name or not step else past[name] for name in names}
            tokens.append(int(np.asarray(logits)[0, -1].argmax()))
            if tokens[-1] == END:
                break
        text = b"".join(spelled[token] for token in tokens if token > END)
        return text.decode(errors="replace").replace("▁", " ").strip()

    return remembered(transcribe)


def pieces(data: bytes) -> list[bytes]:
    """Moonshine's tokens: byte strings, each after its length in one byte, or in two from 128 on.

    Raises InteropError for a file that is cut short.
    """
    found, at = [], 0
    while at < len(data):
        size, at = data[at], at + 1
        if size >= 128 and at < len(data):
            size, at = size - 128 + 128 * data[at], at + 1
        found.append(data[at : at + size])
        at += size
    if at > len(data):
        raise InteropError(f"{MOONSHINE[2]} is cut short")
    return found


# Table 1 of Llasa: greedy CTC, one utterance at a time; the originals of test-clean have 1.96 %
wer_hubert, cer_hubert = _hubert("wer_hubert"), _hubert("cer_hubert")
wer_whisper, cer_whisper = _whisper("wer_whisper", "tiny.en"), _whisper("cer_whisper", "tiny.en")
wer_whisper_medium = _whisper("wer_whisper_medium", "medium.en")  # SpeechTokenizer's and SLMTokBench's
wer_moonshine, cer_moonshine = _moonshine("wer_moonshine"), _moonshine("cer_moonshine")
