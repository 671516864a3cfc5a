"""Moonshine tiny (English, 27 M parameters): greedy transcription of a 16 kHz wave by onnxruntime."""

from functools import cache
from pathlib import Path

import numpy as np

RATE, BEGIN, END, LAYERS, HEADS, WIDTH = 16000, 1, 2, 6, 8, 36
TOKENS_PER_SECOND = 6.5  # Moonshine's own limit, against endless repetition


class Moonshine:
    """The three files moonshine-tiny-{encoder,decoder}.ort and -tokenizer.bin of one folder."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(str(folder / f"moonshine-tiny-{part}.ort"), options)
            for part in ("encoder", "decoder")
        )
        self.pieces = _pieces((folder / "moonshine-tiny-tokenizer.bin").read_bytes())

    def transcribe(self, wave: np.ndarray) -> str:
        """Text of a wave (samples,), float32."""
        mask = np.ones((1, len(wave)), np.int64)
        hidden = self.encoder.run(None, {"input_values": wave[None], "attention_mask": mask})[0]
        names = [f"{layer}.{side}.{part}" for layer in range(LAYERS) for side in ("decoder", "encoder")
                 for part in ("key", "value")]  # fmt: skip
        cache = {name: np.zeros((1, HEADS, 0, WIDTH), np.float32) for name in names}
        tokens = [BEGIN]
        for step in range(int(TOKENS_PER_SECOND * len(wave) / RATE) + 1):
            feed = {"input_ids": np.array([tokens[-1:]]), "encoder_hidden_states": hidden,
                    "encoder_attention_mask": mask, "use_cache_branch": np.array([step > 0])}  # fmt: skip
            feed |= {f"past_key_values.{name}": value for name, value in cache.items()}
            logits, *present = self.decoder.run(None, feed)
            new = dict(zip(names, present, strict=True))
            # The keys of the encoder are computed in the first step only.
            cache = {name: new[name] if ".decoder." in name or not step else cache[name] for name in names}
            tokens.append(int(np.asarray(logits)[0, -1].argmax()))
            if tokens[-1] == END:
                break
        text = b"".join(self.pieces[token] for token in tokens if token > END)
        return text.decode(errors="replace").replace("▁", " ").strip()


def _pieces(data: bytes) -> list[bytes]:
    """Byte strings, each after its length in one byte, or in two from 128 on."""
    pieces, at = [], 0
    while at < len(data):
        size, at = data[at], at + 1
        if size >= 128:
            size, at = size - 128 + 128 * data[at], at + 1
        pieces.append(data[at : at + size])
        at += size
    return pieces


@cache
def moonshine(folder: Path) -> Moonshine:
    """The recogniser in `folder`, loaded once."""
    return Moonshine(folder)
