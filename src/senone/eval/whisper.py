"""Whisper (Radford et al. 2022, 2212.04356) as a recogniser of English, greedy, from OpenAI's own .pt files.

Names of parameters are theirs, and sizes those that the file states. No timestamps, no sampling, no second try at a
higher temperature: the same wave has the same words always.
"""

import base64
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone import features
from senone.eval.metrics import RATE
from senone.eval.neural import fit, read, remembered
from senone.interop import InteropError

TOKENS = "gpt2.tiktoken"
FFT, HOP, SECONDS = 400, 160, 30
END, BEGIN, PLAIN = 50256, 50257, 50362  # end of text, start of transcript, no timestamps: of the English models
BLANK = 220  # " ", which may not come first
Keys = tuple[Tensor, Tensor]
SIZES = ("n_mels", "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
TEXT_SIZES = ("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer")


class Attention(nn.Module):
    """Multi-head attention; its keys and values are computed apart, so that they can be kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)

    def keys(self, x: Float[Tensor, "batch time width"]) -> Keys:
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x: Float[Tensor, "batch time width"], keys: Keys) -> Float[Tensor, "batch time width"]:
        return self.out(F.scaled_dot_product_attention(self._split(self.query(x)), *keys).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention, in the decoder also attention over the encoder, then two linear layers; LayerNorms come first."""

    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.attn, self.attn_ln = Attention(width, heads), nn.LayerNorm(width)
        if cross:
            self.cross_attn, self.cross_attn_ln = Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, past: Keys | None = None, heard: Keys | None = None) -> tuple[Tensor, Keys]:
        """`past`: keys of the tokens before x; `heard`: of the encoder. Gives the output, and all keys so far."""
        y = self.attn_ln(x)
        keys = self.attn.keys(y)
        if past is not None:
            keys = torch.cat([past[0], keys[0]], 2), torch.cat([past[1], keys[1]], 2)
        x = x + self.attn(y, keys)
        if heard is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), heard)
        return x + self.mlp(self.mlp_ln(x)), keys


class Encoder(nn.Module):
    """30 s of log mel spectrum to 1500 frames."""

    def __init__(self, mels: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(mels, width, 3, padding=1), nn.Conv1d(width, width, 3, 2, padding=1)
        self.register_buffer("positional_embedding", torch.zeros(context, width))
        self.blocks = nn.ModuleList(Block(width, heads, cross=False) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def forward(self, mel: Float[Tensor, "batch mel time"]) -> Float[Tensor, "batch frame width"]:
        position: Any = self.positional_embedding
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2) + position
        for block in self.blocks:
            x, _ = block(x)
        return self.ln_post(x)


class Decoder(nn.Module):
    """Tokens, one at a time, to a score for each that may follow."""

    def __init__(self, vocab: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.ModuleList(Block(width, heads, cross=True) for _ in range(layers))
        self.ln = nn.LayerNorm(width)

    def forward(self, token: int, past: list[Keys | None], heard: list[Keys]) -> tuple[Tensor, list[Keys | None]]:
        at = 0 if past[0] is None else past[0][0].shape[2]
        x = self.token_embedding.weight[token][None, None] + self.positional_embedding[at]
        new: list[Keys | None] = []
        for block, before, keys in zip(self.blocks, past, heard, strict=True):
            x, kept = block(x, before, keys)
            new.append(kept)
        return (self.ln(x) @ self.token_embedding.weight.T)[0, 0], new


class Whisper(nn.Module):
    """sizes: as the file's "dims" name them. Raises InteropError where one is missing."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        for name in (*SIZES, *TEXT_SIZES):
            if type(sizes.get(name)) is not int:
                raise InteropError(f"the file of Whisper does not state {name}")
        mels, vocab, *audio = (sizes[name] for name in SIZES)
        self.encoder, self.decoder = Encoder(mels, *audio), Decoder(vocab, *(sizes[name] for name in TEXT_SIZES))

    @torch.no_grad()
    def tokens(self, mel: Float[Tensor, "1 mel time"]) -> list[int]:
        """What is said, token by token, each the most probable; at most half the decoder's context."""
        x = self.encoder(mel)
        heard = [block.cross_attn.keys(x) for block in self.decoder.blocks]  # type: ignore[operator,union-attr]
        past: list[Keys | None] = [None] * len(heard)
        _, past = self.decoder(BEGIN, past, heard)
        said, token = [], PLAIN
        for _ in range(len(self.decoder.positional_embedding) // 2):
            scores, past = self.decoder(token, past, heard)
            scores[BEGIN:] = -torch.inf
            if not said:
                scores[[BLANK, END]] = -torch.inf
            token = int(scores.argmax())
            if token == END:
                break
            said.append(token)
        return said


def log_mel(wave: np.ndarray, mels: int) -> Float[Tensor, "1 mel 3000"]:
    """Of 30 s, padded with silence: base-10 logarithm of power, at most 80 dB below the loudest, about -1 to 1."""
    return spectrum(F.pad(torch.from_numpy(wave)[None], (0, SECONDS * RATE - len(wave))), mels)


def spectrum(wave: Float[Tensor, "batch samples"], mels: int) -> Float[Tensor, "batch mel time"]:
    """What `log_mel` says, of waves of any length, each beside its own loudest."""
    power = features.stft(wave, FFT, HOP)[..., :-1].abs().square()
    x = (features.mel_filters(RATE, FFT, mels).to(power) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(x, x.amax((1, 2), keepdim=True) - 8) + 4) / 4


def cuts(wave: np.ndarray, seconds: float = SECONDS) -> list[np.ndarray]:
    """The wave in pieces of at most `seconds`, cut where the last sixth of a piece is quietest."""
    size, step, parts = round(seconds * RATE), RATE // 50, []
    while len(wave) > size:
        last = wave[size - size // 6 : size]
        power = np.square(last[: len(last) // step * step].reshape(-1, step)).sum(1)
        at = size - size // 6 + step * int(power.argmin()) + step // 2
        parts.append(wave[:at])
        wave = wave[at:]
    return [*parts, wave]


def read_tokens(path: Path) -> list[bytes]:
    """The byte strings of a .tiktoken file, by their numbers. Raises InteropError naming it."""
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        spelled = {int(number): base64.b64decode(token) for token, number in pairs}
        return [spelled[n] for n in range(len(spelled))]
    except (OSError, ValueError, KeyError):
        raise InteropError(f"{path} is no list of tokens") from None


@cache
def whisper(folder: Path, name: str) -> Callable[[np.ndarray], str]:
    """What the English Whisper in `folder`/`name` hears in a wave; longer ones in pieces of 30 s."""
    tree = read(folder / name)
    sizes = tree.get("dims") if isinstance(tree, dict) else None
    model = Whisper(sizes if isinstance(sizes, dict) else {})
    model = fit(model, read(folder / name, "model_state_dict"), folder / name)
    spelled, mels = read_tokens(folder / TOKENS), model.encoder.conv1.in_channels

    def transcribe(wave: np.ndarray) -> str:
        heard = (model.tokens(log_mel(piece, mels)) for piece in cuts(wave))
        texts = (b"".join(spelled[token] for token in tokens if token < END) for tokens in heard)
        return " ".join(text.decode(errors="replace").strip() for text in texts)

    return remembered(transcribe)
