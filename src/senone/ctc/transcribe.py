"""From recordings to words: fixed blocks that overlap, so that an hour takes as little memory as a minute."""

import json
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from senone import hub
from senone.audio import blocks
from senone.ctc import BLANK, BOUNDARY, Beam, CTCError, Hypothesis, boundary, spell
from senone.ctc.align import Word, align, words
from senone.ctc.beam import greedy, prefix_beam
from senone.ctc.lexicon import LexiconDecoder
from senone.ctc.ngram import NGram
from senone.ctc.text import plain
from senone.models.ctc import Recogniser
from senone.nn.encoder import EncoderError

BLOCK, OVERLAP = 20.0, 4.0  # seconds heard at once, of which so many are heard again by the next block
PAUSE = 0.5  # seconds without a letter at which a stretch may end
STRETCH = (15.0, 30.0)  # seconds: what is decoded at once, and kept in memory, is between these, if there is a pause
LINE, CAPTION, SHOWN = 42, 84, 7.0  # letters in a line and in a caption of subtitles; seconds that one stays

Decode = Callable[[Tensor], Hypothesis]


def load(name: str) -> Recogniser:
    """The recogniser of that name. Raises CTCError where it names something else, HubError where nothing."""
    model = hub.load(name)
    if not isinstance(model, Recogniser):
        raise CTCError(f"'{name}' is no recogniser but a {type(model).__name__}")
    return model


def beside(name: str) -> Path | None:
    """The n-gram model in the folder of a bundled or local recogniser, if there is one."""
    folders = hub.BUNDLED / name, Path(name)
    files = (folder / file for folder in folders for file in ("ngram.arpa.gz", "ngram.arpa"))
    return next((file for file in files if file.is_file()), None)


def decoder(
    model: Recogniser,
    lm: str | Path | None = None,
    lexicon: str | Path | None = None,
    beam: int | None = None,
    lm_weight: float | None = None,
    word_score: float | None = None,
) -> Decode:
    """How to read the model's log-probabilities: with an ARPA file or a lexicon by a beam over words, which are those
    of the lexicon, else of the n-grams; with `beam` alone by one over letters; with nothing greedily.

    lexicon: a word a line; what follows it there is left alone, and so are words that the vocabulary cannot spell.
    What is not given is as the model's config says.
    Raises CTCError or NGramError naming the file at fault.
    """
    config, vocab = model.config, model.config.vocabulary
    search = Beam(
        config.beam if beam is None else beam,
        config.lm_weight if lm_weight is None else lm_weight,
        config.word_score if word_score is None else word_score,
    )
    if lm is None and lexicon is None:
        if beam is None:
            return lambda log_probs: greedy(log_probs, vocab)
        return lambda log_probs: prefix_beam(log_probs, vocab, beam=search)[0]
    grams = None if lm is None else NGram.load(lm)
    known = _lexicon(lexicon) if lexicon is not None else [] if grams is None else grams.spoken
    letters = {form for token in vocab if len(token) == 1 for form in (token, token.upper(), token.lower())}
    known = [word for word in known if (letters - {BOUNDARY}).issuperset(word)]
    if not known:
        raise CTCError(f"{lexicon or lm} has no word that the recogniser can spell")
    decode = LexiconDecoder(known, vocab, grams)
    return lambda log_probs: decode(log_probs, search)[0]


@torch.no_grad()
def log_probs(
    model: Recogniser, waves: Iterable[Float[Tensor, "1 samples"]], block: float = BLOCK, overlap: float = OVERLAP
) -> Iterator[Float[Tensor, "frame vocab"]]:
    """Log-probabilities of a recording that comes in pieces, whatever their lengths; one block's at a time.

    Blocks of `block` seconds start every block - `overlap`; of an overlap, the first half is what the earlier block
    says. A recording of one block is heard whole. Raises EncoderError for one that is too short for a frame.
    """
    hop, device = model.encoder.hop, model.lm_head.weight.device
    half = round(overlap * model.sample_rate / hop / 2)
    step = max(1, round((block - overlap) * model.sample_rate / hop))
    size, held, first = (step + 2 * half) * hop, torch.zeros(1, 0), 0
    for wave in waves:
        held = torch.cat([held, wave], 1)
        while held.shape[1] > size:
            yield model.logits(held[:, :size].to(device))[0].float().log_softmax(-1)[first : step + half].cpu()
            held, first = held[:, step * hop :], half
    yield model.logits(held.to(device))[0].float().log_softmax(-1)[first:].cpu()


def stretches(
    pieces: Iterable[Float[Tensor, "frame vocab"]],
    vocab: tuple[str, ...],
    frame_rate: Fraction | float,
    pause: float = PAUSE,
    seconds: tuple[float, float] = STRETCH,
) -> Iterator[tuple[int, Float[Tensor, "frame vocab"]]]:
    """The first frame, and the log-probabilities, of parts that can be decoded by themselves.

    They end in a pause between words, as soon as they are seconds[0] long; at seconds[1] after the last word that is
    over, or where there is none, right there. Where that is depends on the recording, not on how it is cut in pieces.
    """
    bar = boundary(vocab)
    enough, shortest, longest = (round(x * frame_rate) for x in (pause, *seconds))
    held, start, seen, still, word = torch.zeros(0, len(vocab)), 0, 0, 0, 0
    parted = False
    for piece in pieces:
        held = torch.cat([held, piece])
        best = held.argmax(1).tolist()
        while seen < len(held):
            letter = best[seen]
            seen += 1
            parted = letter == bar or (letter == BLANK and parted)
            still = still + 1 if letter in (BLANK, bar) else 0
            word = seen if letter == bar else word
            end = seen if parted and still >= enough and seen >= shortest else 0
            if seen >= longest:
                end = word or seen
            if end:
                yield start, held[:end]
                held, best, start = held[end:], best[end:], start + end
                seen, still, word, parted = 0, 0, 0, False
    if len(held):
        yield start, held


def transcribe(
    model: Recogniser, path: str | Path, decode: Decode, advance: Callable[[float], None] = lambda seconds: None
) -> Iterator[Word]:
    """The words of a recording ("-": standard input) in order, in bounded memory. `advance` hears of seconds done.

    Raises AudioError or CTCError naming the file: no audio, or too short for a frame.
    """
    vocab, rate = model.config.vocabulary, Fraction(model.sample_rate, model.encoder.hop)

    def pieces() -> Iterator[Tensor]:
        for piece in _naming(path, log_probs(model, blocks(path, model.sample_rate))):
            yield piece
            advance(float(len(piece) / rate))

    for first, part in stretches(pieces(), vocab, rate):
        if any(len(vocab[k]) == 1 and k != BLANK and vocab[k] != BOUNDARY for k in set(part.argmax(1).tolist())):
            for word in words(decode(part), vocab, rate):
                offset = float(first / rate)
                yield Word(word.text, word.start + offset, word.end + offset, word.score)


def aligned(model: Recogniser, path: str | Path, text: str, source: str = "the text") -> list[Word]:
    """When each word of a known text was said. Takes a byte for each frame and each half of a letter.

    Raises AudioError or CTCError naming the file, or `source`, where the text is from: characters that the recogniser
    does not write, no words, more letters than frames.
    """
    vocab, rate = model.config.vocabulary, Fraction(model.sample_rate, model.encoder.hop)
    tokens = _spell(text, vocab, source)
    found = torch.cat(list(_naming(path, log_probs(model, blocks(path, model.sample_rate)))))
    try:
        return words(align(found, tokens, vocab), vocab, rate)
    except CTCError as error:
        raise CTCError(f"{path} does not fit the text: {error}") from None


def read_text(text: str) -> tuple[str, str]:
    """The text itself, or what the file of that name holds, and what to call it. Raises CTCError for one of no text."""
    try:
        if not Path(text).is_file():
            return text, "the text"
    except OSError:  # a text too long for a name
        return text, "the text"
    return _read(text), text


def as_text(path: str | Path, found: list[Word]) -> list[str]:
    """One line, of words."""
    return [" ".join(word.text for word in found)]


def as_table(path: str | Path, found: list[Word]) -> list[str]:
    """A line a word: start and end in seconds, word, separated by tabs."""
    return [f"{word.start:.2f}\t{word.end:.2f}\t{word.text}" for word in found]


def as_json(path: str | Path, found: list[Word]) -> list[str]:
    """One line: {"file", "text", "words": [{"word", "start", "end", "score"}]}, times in seconds; score: see `Word`."""
    rows = [{"word": w.text} | {key: round(getattr(w, key), 3) for key in ("start", "end", "score")} for w in found]
    values = {"file": str(path), "text": " ".join(w.text for w in found), "words": rows}
    return [json.dumps(values, ensure_ascii=False)]


def as_srt(path: str | Path, found: list[Word]) -> list[str]:
    """Subtitles: captions of at most two lines, `SHOWN` seconds, and no pause."""
    captions: list[list[Word]] = []
    for word in found:
        last = captions[-1] if captions else []
        letters = sum(len(w.text) + 1 for w in last) + len(word.text)
        if not last or word.start - last[-1].end > PAUSE or word.end - last[0].start > SHOWN or letters > CAPTION:
            captions.append([])
        captions[-1].append(word)
    times = (f"{_clock(words[0].start)} --> {_clock(words[-1].end)}" for words in captions)
    return [f"{k}\n{time}\n{_lines(c)}\n" for k, (time, c) in enumerate(zip(times, captions, strict=True), 1)]


def _clock(seconds: float) -> str:
    whole = round(1000 * seconds)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02},{whole % 1000:03}"


def _lines(caption: list[Word]) -> str:
    """In one line, or in two that are as even as words allow."""
    said = [w.text for w in caption]
    if len(" ".join(said)) <= LINE:
        return " ".join(said)
    halves = [(" ".join(said[:k]), " ".join(said[k:])) for k in range(1, len(said))] or [(said[0], "")]
    return "\n".join(min(halves, key=lambda pair: max(map(len, pair)))).rstrip()


def _naming(path: str | Path, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    try:
        yield from pieces
    except EncoderError as error:
        raise CTCError(f"{'standard input' if str(path) == '-' else path}: {error}") from None


def _spell(text: str, vocab: tuple[str, ...], source: str) -> tuple[int, ...]:
    try:
        return spell(plain(text), vocab)
    except CTCError as error:
        raise CTCError(f"{source}: {error}") from None


def _lexicon(path: str | Path) -> list[str]:
    return [line.split()[0] for line in _read(path).splitlines() if line.strip()]


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CTCError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CTCError(f"{path} is not text in UTF-8") from None
