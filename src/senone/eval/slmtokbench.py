"""SLMTokBench: how close are tokens to text, and what do they keep? (SpeechTokenizer, 2308.16692, section 4.1)

aligned = text_alignment(train, dev, test, sizes=(1024,), frame_rate=50)
aligned.mi.per_char, aligned.wer.value

Text alignment is asked of a probe, two layers of bidirectional LSTM and CTC over characters (SUPERB's recogniser, which
the paper uses), trained on the tokens: its error rate, and I(tokens; text) as vCLUB estimates it from the probe's q:

    I = mean over i of log q(y_i | x_i)  -  mean over i and j of log q(y_j | x_i)

which is an upper bound, and grows with the confidence of the probe. The code was never published. Its figures near 30
can only be nats per character, for an utterance has hundreds; so pair terms are divided by the length of y_j. Figures
compare only where probe, training and data are the same, so all of these are part of the result. Information
preservation, the other half, is resynthesis measured by `senone.eval.bench`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from senone.ctc import spell
from senone.ctc.beam import greedy
from senone.ctc.text import edits, plain
from senone.eval.stats import intervals
from senone.eval.units import EvalError
from senone.models.ctc import ctc_loss
from senone.tokenizer import AudioTokenizer

RATE = 50  # frames a second that CTC should have: below, frames are repeated
DRAWS, CHUNK = 10_000, 1_000  # of the bootstrap; in memory at once


@dataclass(frozen=True)
class Settings:
    """Of the probe and its training; the defaults are the paper's (s3prl's for what it does not say).

    width: of embeddings and of each direction of an LSTM. batch: utterances. tables: embeddings start "random", or as
    the "codebook" has them. check: steps between looks at dev, whose best look is kept. pairs: utterances of dev that
    mutual information is taken over, at random by `seed`.
    """

    steps: int = 200_000
    width: int = 1024
    layers: int = 2
    batch: int = 32
    lr: float = 1e-4
    dropout: float = 0.2
    clip: float = 1.0
    tables: Literal["random", "codebook"] = "random"
    check: int = 2000
    pairs: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """An utterance as the probe sees it."""

    codes: Int[np.ndarray, "level frame"]
    text: str


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Information:
    """Mutual information in nats, over `utterances` tokens and their texts, all of them paired.

    A text of more characters than there are frames has no probability at all. infeasible: share of such pairs; they are
    left out of the means, or, for the figures called zero, have log q = 0, as PyTorch's CTC with zero_infinity has it.
    Intervals are over the utterances whose tokens are given.
    """

    per_char: Interval
    per_utterance: Interval
    zero_per_char: Interval
    zero_per_utterance: Interval
    infeasible: float
    utterances: int


@dataclass(frozen=True)
class Alignment:
    """What the probe found. mi: on dev. wer, cer: on test, of greedy decoding, shares of 1. train_loss, dev_loss: nats
    per character, of the weights that were kept; far apart, the probe has learnt its training set by heart. step: when
    they were kept. repeats: of each frame. skipped: training utterances too short for their text."""

    mi: Information
    wer: Interval
    cer: Interval
    train_loss: float
    dev_loss: float
    step: int
    repeats: int
    skipped: int
    characters: int
    parameters: int


class Probe(nn.Module):
    """(batch level frame) tokens -> (batch frame character) scores: embeddings of all levels added, LSTMs, CTC."""

    def __init__(self, tables: Sequence[Tensor | int], characters: int, settings: Settings, repeats: int = 1) -> None:
        """tables: for each level its vectors, (size dim), or its size alone for random ones."""
        super().__init__()
        width, self.repeats = settings.width, repeats
        known = [None if isinstance(table, int) else table for table in tables]
        dims = [width if table is None else table.shape[1] for table in known]
        sizes = [table if isinstance(table, int) else len(table) for table in tables]
        self.tables = nn.ModuleList(nn.Embedding(size, dim) for size, dim in zip(sizes, dims, strict=True))
        for mine, table in zip(self.tables, known, strict=True):
            if table is not None:
                mine.weight.data.copy_(table)  # type: ignore[union-attr]
        self.project = nn.Linear(dims[0], width)
        ins = [width, *[2 * width] * (settings.layers - 1)]
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.LSTM(wide, width, batch_first=True) for _ in ("on", "back")) for wide in ins
        )
        self.dropout, self.head = nn.Dropout(settings.dropout), nn.Linear(2 * width, characters)

    def forward(
        self, codes: Int[Tensor, "batch level frame"], frames: Int[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch frame character"], Int[Tensor, "batch"]]:
        """Scores, and how many frames of each row count; rows do not see their padding."""
        x = torch.stack([table(codes[:, k]) for k, table in enumerate(self.tables)]).sum(0)
        x, frames = self.project(x).repeat_interleave(self.repeats, 1), frames * self.repeats
        # Each row is turned around in its own frames, so that padding comes last both ways. PyTorch's packed sequences
        # do the same, but the gradient of long ones takes a CPU twenty times as long.
        time = torch.arange(x.shape[1], device=x.device)
        ends = frames.to(x.device)[:, None]
        back = torch.where(time < ends, ends - 1 - time, time)[:, :, None]
        for on, other in self.layers:  # type: ignore[misc]
            turned = other(x.gather(1, back.expand_as(x)))[0]
            x = self.dropout(torch.cat([on(x)[0], turned.gather(1, back.expand_as(turned))], 2))
        return self.head(x), frames


def text_alignment(
    train: Sequence[Sample],
    dev: Sequence[Sample],
    test: Sequence[Sample],
    *,
    sizes: Sequence[int],
    frame_rate: float,
    settings: Settings = Settings(),
    tables: Sequence[Tensor] | None = None,
    device: str | torch.device | None = None,
    tell: Callable[[int, float, float], None] = lambda step, train, dev: None,
) -> Alignment:
    """Train a probe and ask it. sizes, tables: of the levels that the samples have; tables: (size dim) vectors, needed
    for settings.tables "codebook". device: a GPU where there is one. tell: hears step, training and dev loss.

    Raises EvalError where a part has no text or is too short for it, or where tables are missing.
    """
    if settings.tables == "codebook" and tables is None:
        raise EvalError("the probe is to start from the codebook: give its tables")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    letters = sorted(
        {letter for part in (train, dev, test) for sample in part for letter in plain(sample.text)} - {" "}
    )
    vocab, repeats = ("<pad>", "|", *letters), max(1, ceil(RATE / frame_rate - 1e-9))
    parts = {"train": train, "dev": dev, "test": test}
    spelt = {name: _spelt(name, part, vocab) for name, part in parts.items()}
    fits = {
        name: [sample for sample in part if feasible(sample[0].shape[1] * repeats, sample[1])]
        for name, part in spelt.items()
    }
    for name in ("train", "dev"):
        if not fits[name]:
            raise EvalError(f"every utterance of {name} has fewer frames than its text needs")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        starts = tables if settings.tables == "codebook" and tables is not None else sizes
        probe = Probe(starts, len(vocab), settings, repeats).to(device)
        train_loss, dev_loss, step = _fit(probe, fits["train"], fits["dev"], settings, tell)
    chosen = np.random.default_rng(settings.seed).permutation(len(spelt["dev"]))[: settings.pairs]
    pool = [spelt["dev"][k] for k in sorted(chosen)]
    table = log_likelihoods(probe, [codes for codes, _ in pool], [tokens for _, tokens in pool])
    heard = [greedy(scores, vocab).text for scores in _listen(probe, [codes for codes, _ in spelt["test"]])]
    truth = [plain(sample.text) for sample in test]
    return Alignment(
        mi=information(table, np.array([len(tokens) for _, tokens in pool]), seed=settings.seed),
        wer=_rate([text.split() for text in truth], [text.split() for text in heard], settings.seed),
        cer=_rate(truth, heard, settings.seed),
        train_loss=train_loss,
        dev_loss=dev_loss,
        step=step,
        repeats=repeats,
        skipped=len(spelt["train"]) - len(fits["train"]),
        characters=len(vocab) - 1,
        parameters=sum(weight.numel() for weight in probe.parameters()),
    )


def information(log_q: Float[np.ndarray, "x y"], lengths: Int[np.ndarray, "y"], *, seed: int = 0) -> Information:
    """From log q(y_j | x_i) in nats, -inf where infeasible, and the characters of each y. Raises EvalError where no
    own pair is feasible."""
    able = np.isfinite(log_q)
    if not able.diagonal().any():
        raise EvalError("no utterance has frames enough for its own text")
    drawn, count = np.random.default_rng(seed), len(log_q)
    draws = [
        drawn.integers(0, count, (CHUNK, count)) + count * np.arange(CHUNK)[:, None] for _ in range(DRAWS // CHUNK)
    ]
    times = [np.bincount(draw.ravel(), minlength=CHUNK * count).reshape(CHUNK, count) for draw in draws]

    def estimate(terms: np.ndarray, counted: np.ndarray) -> Interval:
        own, own_count = np.where(counted, terms, 0).diagonal(), counted.diagonal()
        rows, row_count = np.where(counted, terms, 0).sum(1), counted.sum(1)
        value = own.sum() / own_count.sum() - rows.sum() / row_count.sum()
        with np.errstate(invalid="ignore"):  # a draw may miss all that is feasible
            again = np.concatenate([t @ own / (t @ own_count) - t @ rows / (t @ row_count) for t in times])
        low, high = np.nanpercentile(again, (2.5, 97.5))
        return Interval(float(value), float(low), float(high))

    zeroed, all_of_them = np.where(able, log_q, 0.0), np.ones_like(able)
    return Information(
        per_char=estimate(log_q / lengths, able),
        per_utterance=estimate(log_q, able),
        zero_per_char=estimate(zeroed / lengths, all_of_them),
        zero_per_utterance=estimate(zeroed, all_of_them),
        infeasible=float(1 - able.mean()),
        utterances=count,
    )


@torch.no_grad()
def log_likelihoods(
    probe: Probe, codes: Sequence[Int[np.ndarray, "level frame"]], texts: Sequence[Sequence[int]]
) -> Float[np.ndarray, "x y"]:
    """log q(y_j | x_i) in nats, over all alignments, for every text j given every utterance i; -inf where i has fewer
    frames than j needs."""
    sizes = torch.tensor([len(text) for text in texts])
    targets = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    out = []
    for scores in _listen(probe, codes):
        log_probs = scores.double().log_softmax(-1)[:, None].expand(-1, len(texts), -1)
        frames = torch.full((len(texts),), len(scores))
        loss = F.ctc_loss(log_probs, targets.to(scores.device), frames, sizes, reduction="none")
        out.append(-loss.cpu().numpy())
    return np.stack(out)


def feasible(frames: int, tokens: Sequence[int]) -> bool:
    """Whether CTC can say the tokens in so many frames: one each, and a blank between two alike."""
    return frames >= len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))


@torch.no_grad()
def codebooks(tokenizer: AudioTokenizer, first: int, last: int) -> list[Float[Tensor, "size dim"]]:
    """The vectors of levels first to last (from 1), as far as they add up: what a code adds to the one of all zeros."""
    sizes, like = tokenizer.quantizer.sizes[:last], next(iter((*tokenizer.parameters(), *tokenizer.buffers())))
    out = []
    for level in range(first - 1, last):
        codes = torch.zeros(1, last, sizes[level], dtype=torch.long, device=like.device)
        codes[0, level] = torch.arange(sizes[level])
        vectors = tokenizer.quantizer.decode(codes)[0].T.float().cpu()
        out.append(vectors if level == 0 else vectors - vectors[:1])
    return out


Spelt = tuple[np.ndarray, tuple[int, ...]]  # codes (level frame), tokens


def _spelt(name: str, part: Sequence[Sample], vocab: tuple[str, ...]) -> list[Spelt]:
    for sample in part:
        if not plain(sample.text):
            raise EvalError(f"an utterance of {name} has no text")
    if not part:
        raise EvalError(f"there are no utterances to {'train on' if name == 'train' else f'measure in {name}'}")
    return [(sample.codes, spell(plain(sample.text), vocab)) for sample in part]


def _batch(rows: Sequence[Spelt], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, frames, targets, sizes."""
    frames = torch.tensor([codes.shape[1] for codes, _ in rows])
    codes = torch.zeros(len(rows), len(rows[0][0]), int(frames.max()), dtype=torch.long)
    for row, (one, _) in zip(codes, rows, strict=True):
        row[:, : one.shape[1]] = torch.from_numpy(one.astype(np.int64))
    targets = nn.utils.rnn.pad_sequence([torch.tensor(tokens) for _, tokens in rows], batch_first=True)
    sizes = torch.tensor([len(tokens) for _, tokens in rows])
    return codes.to(device), frames, targets.to(device), sizes.to(device)


def _loss(probe: Probe, rows: Sequence[Spelt]) -> Tensor:
    """Nats per character, the mean over utterances."""
    codes, frames, targets, sizes = _batch(rows, probe.head.weight.device)
    logits, frames = probe(codes, frames)
    return (ctc_loss(logits, frames.to(sizes.device), targets, sizes) / sizes).mean()


def _fit(
    probe: Probe, train: list[Spelt], dev: list[Spelt], settings: Settings, tell: Callable[[int, float, float], None]
) -> tuple[float, float, int]:
    """Train; leaves the weights that are best on dev, in evaluation mode. Their training and dev loss, and step."""
    optimiser = torch.optim.Adam(probe.parameters(), lr=settings.lr)
    rng, queue, best = np.random.default_rng(settings.seed), [], (float("inf"), 0, {})
    lengths = np.array([codes.shape[1] for codes, _ in train])
    for step in range(1, settings.steps + 1):
        if not queue:  # an epoch: batches of like lengths, in random order
            order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths)))
            chunks = [order[k : k + settings.batch] for k in range(0, len(order), settings.batch)]
            queue = [chunks[k] for k in rng.permutation(len(chunks))]
        probe.train()
        loss = _loss(probe, [train[k] for k in queue.pop()])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), settings.clip)
        optimiser.step()
        if step % settings.check == 0 or step == settings.steps:
            now = evaluate(probe, dev)
            tell(step, float(loss.detach()), now)
            if now < best[0]:
                best = now, step, {name: value.detach().clone() for name, value in probe.state_dict().items()}
    if not best[2]:
        raise EvalError("the probe's training went to NaN: a smaller learning rate is needed")
    probe.load_state_dict(best[2])
    some = [train[k] for k in rng.permutation(len(train))[: len(dev)]]
    return evaluate(probe, some), best[0], best[1]


@torch.no_grad()
def evaluate(probe: Probe, rows: Sequence[Spelt], batch: int = 16) -> float:
    """Nats per character, the mean over utterances."""
    probe.eval()
    parts = [rows[k : k + batch] for k in range(0, len(rows), batch)]
    return float(sum(_loss(probe, part) * len(part) for part in parts)) / len(rows)


@torch.no_grad()
def _listen(probe: Probe, codes: Sequence[np.ndarray]) -> list[Float[Tensor, "frame character"]]:
    """Scores of each utterance, heard alone."""
    probe.eval()
    return [probe(*_batch([(one, (1,))], probe.head.weight.device)[:2])[0][0].float() for one in codes]


def _rate(truth: Sequence[Sequence[str]], heard: Sequence[Sequence[str]], seed: int) -> Interval:
    """Errors over all there is, and its interval over utterances."""
    errors = np.array([[edits(a, b)] for a, b in zip(truth, heard, strict=True)], float)
    counts = np.array([[len(text)] for text in truth], float)
    (low,), (high,) = intervals(errors, counts, seed)
    return Interval(float(errors.sum() / counts.sum()), float(low), float(high))
