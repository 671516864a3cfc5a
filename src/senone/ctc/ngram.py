"""N-gram language models of words: read and write ARPA files, score as KenLM does, train modified Kneser-Ney.

The n-grams are one trie in arrays, an Aho-Corasick automaton: node 0 is the empty context, `keys[i]` = parent *
words + word leads to node i + 1, and `suffix` leads to the longest shorter context that the model has. A state is the
node of the longest known context, an int: states that are equal have equal futures, so hypotheses can be merged.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senone.errors import SenoneError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
UNK_MISSING = -100.0  # KenLM's log10 probability of unknown words where the file has no <unk>
FALLBACK = (0.5, 1.0, 1.5)  # lmplz's discounts where the counts are too few to estimate them
Grams = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]  # words (gram, order), log10 p, back-off


class NGramError(SenoneError):
    """An ARPA file that is malformed or cut short, or a text that no n-gram model can be trained on."""


class _BadGram(NGramError):
    def __init__(self, order: int, place: int, fault: str):
        super().__init__(f"{order}-gram {place} {fault}")
        self.order, self.place, self.fault = order, place, fault


class NGram:
    """A back-off n-gram model, a `senone.ctc.WordLM`; probabilities are log10.

    order: the n of the longest n-grams. words: all it knows, with <unk>, <s>, </s>; an id is a place in it.
    """

    def __init__(self, words: Iterable[str], grams: list[Grams]):
        """grams: of each order; all words are unigrams, in their order, and every n-gram's context is an n-gram."""
        self.words = tuple(words)
        self.order = len(grams)
        self._ids = {word: k for k, word in enumerate(self.words)}
        self._keys = np.zeros(0, np.int64)
        ends, probs, backoffs = [0, 1], [np.zeros(1)], [np.zeros(1)]
        for gram, prob, backoff in grams:
            context = self._walk(gram[:, :-1])
            if (context < 0).any():
                raise _BadGram(len(ends) - 1, int((context < 0).argmax()), "is there without its context")
            key = context * len(self.words) + gram[:, -1]
            places = key.argsort(kind="stable")
            twice = places[1:][key[places[1:]] == key[places[:-1]]]
            if len(twice):
                raise _BadGram(len(ends) - 1, int(twice.min()), "is there twice")
            self._keys = np.concatenate([self._keys, key[places]])
            probs.append(prob[places])
            backoffs.append(backoff[places])
            ends.append(ends[-1] + len(key))
        self._first = ends  # the nodes of order k are first[k] to first[k + 1]
        self._prob, self._backoff = np.concatenate(probs), np.concatenate(backoffs)
        self._suffix = self._suffixes()

    @property
    def spoken(self) -> tuple[str, ...]:
        """The words that can be said: all but those in angle brackets."""
        return tuple(word for word in self.words if not (word.startswith("<") and word.endswith(">")))

    def _child(self, node: NDArray[np.int64], word: NDArray[np.int64]) -> NDArray[np.int64]:
        """Nodes one word further, -1 where there are none (also from -1)."""
        key = node * len(self.words) + word
        place = self._keys.searchsorted(key)
        found = (node >= 0) & (self._keys[np.minimum(place, len(self._keys) - 1)] == key)
        return np.where(found, place + 1, -1)

    def _walk(self, grams: NDArray[np.int64]) -> NDArray[np.int64]:
        """The nodes of (gram, word) contexts, -1 for unknown ones."""
        node = np.zeros(len(grams), np.int64)
        for word in grams.T:
            node = self._child(node, word)
        return node

    def _suffixes(self) -> NDArray[np.int64]:
        suffix = np.zeros(len(self._prob), np.int64)
        for first, end in zip(self._first[2:], self._first[3:], strict=False):
            parent, word = np.divmod(self._keys[first - 1 : end - 1], len(self.words))
            context = suffix[parent]
            found = self._child(context, word)
            while (found < 0).any():  # ends at the latest at a unigram, which every word is
                context = np.where(found < 0, suffix[context], context)
                found = self._child(context, word)
            suffix[first:end] = found
        return suffix

    def start(self) -> int:
        """The state after <s>."""
        return self._ids[BOS] + 1

    def score(self, state: int, word: str) -> tuple[float, int]:
        """log10 P(word | state), backing off as far as needed, and the state after it; unknown words are <unk>."""
        return self._score(state, self._ids.get(word, self._ids[UNK]))

    def finish(self, state: int) -> float:
        """log10 P(</s> | state)."""
        return self._score(state, self._ids[EOS])[0]

    def sentence(self, text: str) -> float:
        """log10 P of a whole sentence, words separated by spaces, </s> included."""
        state, total = self.start(), 0.0
        for word in text.split():
            prob, state = self.score(state, word)
            total += prob
        return total + self.finish(state)

    def perplexity(self, sentences: Iterable[str]) -> float:
        """10^(-mean log10 P) over all words and sentence ends, unknown words included."""
        total, count = 0.0, 0
        for text in sentences:
            total += self.sentence(text)
            count += len(text.split()) + 1
        return 10 ** (-total / max(1, count))

    def _score(self, state: int, word: int) -> tuple[float, int]:
        total, words, keys = 0.0, len(self.words), self._keys
        while True:
            key = state * words + word
            place = int(keys.searchsorted(key))
            if place < len(keys) and keys[place] == key:
                break
            total += self._backoff.item(state)
            state = self._suffix.item(state)
        node = place + 1
        after = node if node < self._first[self.order] else self._suffix.item(node)
        return total + self._prob.item(node), after

    def grams(self, order: int) -> Grams:
        """Words as ids (gram, order), log10 probabilities and back-off weights of all n-grams of an order."""
        first, end = self._first[order], self._first[order + 1]
        columns, node = [], np.arange(first, end)
        for _ in range(order):
            node, word = np.divmod(self._keys[node - 1], len(self.words))
            columns.append(word)
        return np.stack(columns[::-1], 1), self._prob[first:end], self._backoff[first:end]

    def save(self, path: str | Path) -> None:
        """Write an ARPA file, gzipped where the name ends in .gz, under a temporary name first; six digits a number.

        Raises NGramError where it cannot be written.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        text = "\n".join(self._lines()).encode()
        try:  # without a time in the gzip header equal models are equal files
            part.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise NGramError(f"cannot write {path}: {error.strerror}") from None

    def _lines(self) -> Iterator[str]:
        counts = [end - first for first, end in zip(self._first[1:], self._first[2:], strict=False)]
        yield "\\data\\"
        yield from (f"ngram {k}={count}" for k, count in enumerate(counts, 1))
        for order in range(1, self.order + 1):
            yield f"\n\\{order}-grams:"
            columns = (column.tolist() for column in self.grams(order))
            for gram, prob, backoff in zip(*columns, strict=True):
                text = " ".join([self.words[word] for word in gram])
                yield f"{prob:.6g}\t{text}" + (f"\t{backoff:.6g}" if order < self.order else "")
        yield "\n\\end\\\n"

    @classmethod
    def load(cls, path: str | Path) -> "NGram":
        """Read an ARPA file, plain or gzipped. Raises NGramError naming the file and the line at fault."""
        path = Path(path)
        try:
            data = path.read_bytes()
            data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        except FileNotFoundError:
            raise NGramError(f"{path} does not exist") from None
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise NGramError(f"{path} is cut short or damaged: it does not unpack") from None
        except OSError as error:
            raise NGramError(f"cannot read {path}: {error.strerror}") from None
        return _Reader(str(path), data).read()

    @classmethod
    def train(cls, sentences: Iterable[str], order: int = 4, prune: tuple[int, ...] = (0,)) -> "NGram":
        """Interpolated modified Kneser-Ney (Chen & Goodman 1998, section 3; as lmplz, Heafield et al. 2013).

        sentences: words separated by spaces; empty ones are left out. prune: as lmplz's, for each order the count up
        to which its n-grams are dropped, never falling, the last for all higher orders; words are kept, so the first
        is 0. Raises NGramError without text, for <s>, </s> or <unk> in it, and for a prune or order that cannot be.
        """
        cuts = (*prune, *prune[-1:] * order)[:order]
        if order < 1 or not prune or cuts[0] != 0 or list(cuts) != sorted(cuts):
            raise NGramError(f"an n-gram model needs order >= 1 and prune from 0, never falling, got {order}, {prune}")
        texts = [words for words in (sentence.split() for sentence in sentences) if words]
        if not texts:
            raise NGramError("there is no text to train an n-gram model on")
        known = set(chain.from_iterable(texts))
        if known & {UNK, BOS, EOS}:
            raise NGramError(f"the text holds {sorted(known & {UNK, BOS, EOS})[0]}, which the n-gram model puts itself")
        vocab = (UNK, BOS, EOS, *sorted(known))
        ids = {word: k for k, word in enumerate(vocab)}
        stream = np.array([ids[word] for words in texts for word in (BOS, *words, EOS)])
        return cls(vocab, _kneser_ney(stream, len(vocab), order, cuts))


class _Reader:
    """Reads ARPA line by line, in bytes: its words are split at ASCII white space only, as KenLM splits them."""

    def __init__(self, name: str, data: bytes):
        self.name, self.lines, self.at = name, data.split(b"\n"), 0
        self.ids: dict[bytes, int] = {}

    def read(self) -> NGram:
        if self._next("\\data\\") != b"\\data\\":
            raise NGramError(f"{self.name} is not an ARPA file: it does not begin with \\data\\")
        counts: list[int] = []
        while (line := self._next("the n-grams")).startswith(b"ngram"):
            order, _, count = line[5:].partition(b"=")
            if order.strip() != b"%d" % (len(counts) + 1) or not count.strip().isdigit():
                raise self._fault(f"expected 'ngram {len(counts) + 1}=COUNT'")
            counts.append(int(count))
        if not counts:
            raise self._fault("expected 'ngram 1=COUNT'")
        grams, starts = [], []
        for order, count in enumerate(counts, 1):
            if line != b"\\%d-grams:" % order:
                raise self._fault(f"expected \\{order}-grams:")
            starts.append(self.at)
            grams.append(self._section(order, count, order == len(counts)))
            line = self._next(f"\\{order + 1}-grams:" if order < len(counts) else "\\end\\")
        if line != b"\\end\\":
            raise self._fault(f"expected \\end\\ after {counts[-1]} {len(counts)}-grams")
        try:
            return NGram([word.decode() for word in self.ids], grams)
        except UnicodeDecodeError as error:
            raise NGramError(f"{self.name} holds a word that is not UTF-8: {error.object!r}") from None
        except _BadGram as error:
            self.at = starts[error.order - 1] + error.place + 1
            raise self._fault(f"the {error.order}-gram {error.fault}") from None

    def _section(self, order: int, count: int, highest: bool) -> Grams:
        words, probs, backoffs = [], [], []
        for k in range(count):
            fields = self._line(f"after {k} of {count} {order}-grams").split()
            if len(fields) not in ((order + 1,) if highest else (order + 1, order + 2)):
                raise self._fault(f"{order}-gram {k + 1} of {count} is not a probability, {order} words and a back-off")
            gram = fields[1 : order + 1]
            try:
                prob, backoff = float(fields[0]), float(fields[order + 1]) if len(fields) > order + 1 else 0.0
            except ValueError:
                raise self._fault("the log10 probability or the back-off is not a number") from None
            if not (-np.inf < prob <= 0 and -np.inf < backoff < np.inf):
                raise self._fault("a log10 probability must not be above 0, nor it or a back-off infinite")
            if order == 1:
                word = UNK.encode() if gram[0] == b"<UNK>" else gram[0]
                if self.ids.setdefault(word, k) != k:
                    raise self._fault("the 1-gram is there twice")
            probs.append(prob)
            backoffs.append(backoff)
            try:
                words.append([self.ids[word] for word in gram] if order > 1 else [k])
            except KeyError as error:
                raise self._fault(f"{error.args[0].decode(errors='replace')!r} is not among the 1-grams") from None
        if order == 1:
            for mark in (BOS, EOS):
                if mark.encode() not in self.ids:
                    raise self._fault(f"there is no {mark} among the 1-grams")
            if UNK.encode() not in self.ids:
                self.ids[UNK.encode()] = count
                words, probs, backoffs = [*words, [count]], [*probs, UNK_MISSING], [*backoffs, 0.0]
        return np.array(words, np.int64).reshape(-1, order), np.array(probs, float), np.array(backoffs, float)

    def _line(self, where: str) -> bytes:
        if self.at >= len(self.lines):
            raise NGramError(f"{self.name} is cut short: it ends at line {self.at} {where}")
        self.at += 1
        return self.lines[self.at - 1]

    def _next(self, expected: str) -> bytes:
        """The next line that is not empty."""
        while not (line := self._line(f"before {expected}").strip()):
            pass
        return line

    def _fault(self, message: str) -> NGramError:
        return NGramError(f"{self.name}, line {self.at}: {message}")


def _kneser_ney(stream: NDArray[np.int64], words: int, order: int, cuts: tuple[int, ...]) -> list[Grams]:
    """Probabilities of all n-grams of `stream`, the sentences one after another, each from <s> (1) to </s> (2).

    `at[i]` is the row, among the distinct n-grams of one order, of the n-gram that starts at place i.
    """
    ends = np.flatnonzero(stream == 2)
    left = ends[np.searchsorted(ends, np.arange(len(stream)))] - np.arange(len(stream)) + 1  # words to </s>
    tables: list[dict[str, Any]] = []
    at = np.zeros(len(stream), np.int64)
    for k in range(1, order + 1):
        places = np.flatnonzero(left >= k)
        keys = at[places] * words + stream[places + k - 1]
        _, first, row, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        before, at = at, np.full(len(stream), -1)
        at[places] = row
        first = places[first]
        table = {"ids": stream[first[:, None] + np.arange(k)], "raw": counts, "count": counts.copy()}
        table["context"] = before[first]
        if tables:  # kneser-ney: a shorter n-gram counts the distinct words before it; there are none before <s>
            table["shorter"] = before[first + 1]
            inner = tables[-1]["ids"][:, 0] != 1
            distinct = np.bincount(table["shorter"], minlength=len(inner))
            tables[-1]["count"][inner] = distinct[inner]
        tables.append(table)
    unigrams = tables[0]
    unigrams["count"][unigrams["ids"][:, 0] == 1] = 0  # <s> is never predicted

    below = np.full(1, 1 / (words - 1))  # of the empty n-gram: uniform over the vocabulary, <s> aside
    grams = []
    for k, table in enumerate(tables, 1):
        count, context = table["count"], table["context"]
        keep = table["raw"] > cuts[k - 1]
        discount = np.array([0.0, *_discounts(count)])[np.minimum(count, 3)]
        contexts = 1 if k == 1 else len(tables[k - 2]["count"])
        total = np.bincount(context, count, contexts)
        freed = np.bincount(context, np.where(keep, discount, count), contexts)  # the mass that is not given out here
        gamma = np.divide(freed, total, out=np.ones(contexts), where=total > 0)
        lower = below[table["shorter"]] if k > 1 else below[0]
        below = np.maximum(count - discount, 0) / total[context] + gamma[context] * lower
        if k > 1:
            grams[-1][2][:] = np.log10(gamma)
        else:
            unknown = gamma[0] * lower
        grams.append([table["ids"], below, np.zeros(len(below)), keep])
    ids, prob, backoff, keep = grams[0]
    prob = np.where(ids[:, 0] == 1, 1.0, prob)  # log10 1 = 0, as lmplz writes it
    grams[0] = [np.r_[[[0]], ids], np.r_[unknown, prob], np.r_[0.0, backoff], np.r_[True, keep]]
    return [(ids[keep], np.log10(prob[keep]), backoff[keep]) for ids, prob, backoff, keep in grams]


def _discounts(count: NDArray[np.int64]) -> tuple[float, ...]:
    """D1, D2, D3+ from how many n-grams have the adjusted counts 1 to 4 (Chen & Goodman 1998, eq. 26)."""
    n = [int((count == c).sum()) for c in range(1, 5)]
    if not all(n):
        return FALLBACK
    y = n[0] / (n[0] + 2 * n[1])
    found = tuple(c - (c + 1) * y * n[c] / n[c - 1] for c in (1, 2, 3))
    return found if all(0 < d <= c for c, d in enumerate(found, 1)) else FALLBACK
