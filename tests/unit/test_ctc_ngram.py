"""N-grams: probabilities that sum to 1, Kneser-Ney from the book, KenLM's scores, files whole and broken."""

import gzip
import itertools
import math
import random
from collections import Counter, defaultdict

import pytest

from senone.ctc.ngram import BOS, EOS, UNK, NGram, NGramError

ARPA = r"""
\data\
ngram 1=5
ngram 2=4
ngram 3=2

\1-grams:
-99	<s>	-0.5
-1.2	</s>
-2.5	<unk>
-0.7	A	-0.3
-0.9	B	-0.2

\2-grams:
-0.3	<s> A	-0.1
-0.6	A B	-0.4
-0.8	B </s>
-0.4	A A

\3-grams:
-0.2	<s> A B
-0.15	A B </s>

\end\
"""


def corpus(sentences=300, words=150, seed=0):
    """Sentences with a favourite next word for each word, most words rare, so that all counts from 1 up occur."""
    draw = random.Random(seed)
    names = [f"W{k}" for k in range(words)]
    out = []
    for _ in range(sentences):
        word, text = draw.randrange(9), []
        for _ in range(draw.randint(1, 7)):
            text.append(names[word])
            word = (word * 5 + 1) % words if draw.random() < 0.4 else min(int(draw.paretovariate(0.7)), words - 1)
        out.append(" ".join(text))
    return out


class Book:
    """Interpolated modified Kneser-Ney word for word from Chen & Goodman, on counters; the slow way."""

    def __init__(self, sentences, order):
        self.order = order
        raw = [Counter() for _ in range(order + 1)]
        for text in sentences:
            line = (BOS, *text.split(), EOS)
            for n in range(1, order + 1):
                raw[n].update(line[i : i + n] for i in range(len(line) - n + 1))
        self.words = sorted({w for (w,) in raw[1]} - {BOS}) + [UNK]
        self.counts = [Counter() for _ in range(order + 1)]
        for n in range(1, order + 1):
            before = Counter(gram[1:] for gram in raw[n + 1]) if n < order else {}
            for gram, count in raw[n].items():
                self.counts[n][gram] = count if n == order or gram[0] == BOS else before[gram]
        del self.counts[1][BOS,]
        self.discounts = [None, *(self._discounts(counts) for counts in self.counts[1:])]
        self.after = [None, *(defaultdict(dict) for _ in range(order))]
        for n in range(1, order + 1):
            for gram, count in self.counts[n].items():
                self.after[n][gram[:-1]][gram[-1]] = count

    @staticmethod
    def _discounts(counts):
        n = Counter(counts.values())
        y = n[1] / (n[1] + 2 * n[2])
        return [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]

    def p(self, history, word):
        """P(word | history), the history as long as the order allows."""
        n = len(history) + 1
        below = self.p(history[1:], word) if history else 1 / len(self.words)
        seen = self.after[n].get(history)
        if not seen:
            return below
        total, discount = sum(seen.values()), self.discounts[n]
        gamma = sum(discount[min(count, 3)] for count in seen.values()) / total
        count = seen.get(word, 0)
        return (count - discount[min(count, 3)]) / total + gamma * below


def state_of(model, history):
    state = model.start()
    for word in history:
        state = model.score(state, word)[1]
    return state


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_training_is_kneser_ney_as_the_book_has_it(order):
    text = corpus()
    model, book = NGram.train(text, order), Book(text, order)
    assert all(0 < d < k for ds in book.discounts[1:] for k, d in enumerate(ds) if k)  # none falls back
    histories = [(), ("W1",), ("W3", "W4"), ("W0", "W1", "W6"), ("W11", "W11", "W11"), ("W2", "NEVER"), ("W1", "W2")]
    for history in histories:
        whole = (BOS, *(word if word in book.words else UNK for word in history))
        known = whole[-(order - 1) :] if order > 1 else ()
        state = state_of(model, history)
        for word in book.words:
            prob = model.finish(state) if word == EOS else model.score(state, word)[0]
            assert 10**prob == pytest.approx(book.p(known, word), rel=1e-9)


@pytest.mark.parametrize("prune", [(0,), (0, 1), (0, 0, 1), (0, 1, 2)])
@pytest.mark.parametrize("sentences", [300, 3])
def test_probabilities_sum_to_one_after_any_history(sentences, prune):
    text = corpus(sentences)
    model = NGram.train(text, 3, prune)
    assert set(model.spoken) == {word for line in text for word in line.split()}
    for history in itertools.product([*model.spoken[:5], "NEVER"], repeat=2):
        state = state_of(model, history)
        total = sum(10 ** model.score(state, word)[0] for word in (*model.spoken, UNK)) + 10 ** model.finish(state)
        assert total == pytest.approx(1, abs=1e-9)


def test_pruning_drops_what_is_rare_and_its_contexts_stay():
    text = corpus()
    raw = [Counter() for _ in range(4)]
    for line in text:
        line = (BOS, *line.split(), EOS)
        for n in (2, 3):
            raw[n].update(line[i : i + n] for i in range(len(line) - n + 1))
    model = NGram.train(text, 3, (0, 1, 3))
    for n, cut in ((2, 1), (3, 3)):
        grams = {tuple(model.words[k] for k in gram) for gram in model.grams(n)[0]}
        assert grams == {gram for gram, count in raw[n].items() if count > cut}
        assert 0 < len(grams) < len(raw[n])


def test_a_longer_memory_predicts_what_it_was_trained_on_better():
    text = corpus()
    found = [NGram.train(text, order).perplexity(text) for order in (1, 2, 3)]
    assert found == sorted(found, reverse=True) and found[0] < 150


def test_an_arpa_file_is_scored_by_hand(tmp_path):
    path = tmp_path / "a.arpa"
    path.write_text(ARPA)
    model = NGram.load(path)
    assert model.order == 3 and set(model.spoken) == {"A", "B"}
    start = model.start()
    score, after = model.score(start, "A")
    assert score == -0.3
    assert model.score(after, "B")[0] == -0.2
    assert model.score(after, "A")[0] == pytest.approx(-0.1 - 0.4)  # <s> A backs off to A A
    assert model.score(start, "B")[0] == pytest.approx(-0.5 - 0.9)
    assert model.score(after, "C")[0] == pytest.approx(-0.1 - 0.3 - 2.5)
    assert model.sentence("A B") == pytest.approx(-0.3 - 0.2 - 0.15)
    assert model.sentence("") == pytest.approx(-0.5 - 1.2)
    assert model.perplexity(["A B"]) == pytest.approx(10 ** (0.65 / 3))


def test_states_are_equal_where_futures_are():
    model = NGram.train(corpus(), 3)
    assert state_of(model, ["W0", "W1", "W6"]) == state_of(model, ["W5", "W1", "W6"])
    assert state_of(model, ["W1", "NEVER"]) == state_of(model, ["NEVER"])
    assert state_of(model, ["W1", "W6"]) != state_of(model, ["W6"])


def test_scores_are_kenlms(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is missing: pip install kenlm")
    words = [f"W{k}" for k in range(12)] + ["NEVER"]
    draw = random.Random(1)
    texts = [" ".join(draw.choices(words, k=draw.randint(0, 9))) for _ in range(100)]
    for order, prune in ((2, (0,)), (3, (0, 1)), (4, (0, 0, 1, 1))):
        path = tmp_path / f"{order}.arpa"
        NGram.train(corpus(), order, prune).save(path)
        model, other = NGram.load(path), kenlm.Model(str(path))
        assert other.order == order
        for text in texts:
            assert model.sentence(text) == pytest.approx(other.score(text), abs=1e-4)  # KenLM has single precision


@pytest.mark.parametrize("name", ["m.arpa", "m.arpa.gz"])
def test_files_there_and_back(tmp_path, name):
    model = NGram.train(corpus(), 3, (0, 0, 1))
    model.save(tmp_path / name)
    again = NGram.load(tmp_path / name)
    assert again.words == model.words and again.order == 3
    for order in (1, 2, 3):
        for a, b in zip(model.grams(order), again.grams(order), strict=True):
            assert a.shape == b.shape and abs(a - b).max() <= 1e-5
    first = (tmp_path / name).read_bytes()
    again.save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_arpa_file_without_an_unknown_word(tmp_path):
    path = tmp_path / "a.arpa"
    path.write_text(ARPA.replace("ngram 1=5", "ngram 1=4").replace("-2.5\t<unk>\n", ""))
    model = NGram.load(path)
    assert model.score(model.start(), "C")[0] == -100.5  # KenLM's
    path.write_text(ARPA.replace("<unk>", "<UNK>"))
    assert NGram.load(path).score(model.start(), "C")[0] == -3.0


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("\n\\data\\", "\nhello", r"is not an ARPA file: it does not begin with \\data\\"),
        ("ngram 2=4", "ngram 3=4", "line 4: expected 'ngram 2=COUNT'"),
        ("ngram 2=4", "ngram 2=3", r"line 18: expected \\3-grams:"),
        ("ngram 2=4", "ngram 2=5", "line 19: 2-gram 5 of 5 is not"),
        ("ngram 3=2", "ngram 3=1", r"line 22: expected \\end\\ after 1 3-grams"),
        ("-0.6\tA B\t", "-0.6\t", "line 16: 2-gram 2 of 4 is not a probability, 2 words and a back-off"),
        ("-0.6\tA B", "-0,6\tA B", "line 16: .* is not a number"),
        ("-0.6\tA B", "0.6\tA B", "line 16: .* must not be above 0"),
        ("-0.6\tA B", "nan\tA B", "line 16: .* must not be above 0"),
        ("-0.6\tA B", "-0.6\tA X", "line 16: 'X' is not among the 1-grams"),
        ("-0.4\tA A", "-0.4\tA B", "line 18: the 2-gram is there twice"),
        ("-0.9\tB", "-0.9\tA", "line 12: the 1-gram is there twice"),
        ("-0.15\tA B </s>", "-0.15\tB B </s>", "line 22: the 3-gram is there without its context"),
        ("</s>\n-2.5", "X\n-2.5", "there is no </s> among the 1-grams"),
    ],
)
def test_broken_files_say_where(tmp_path, old, new, message):
    path = tmp_path / "broken.arpa"
    assert old in ARPA
    path.write_text(ARPA.replace(old, new, 1))
    with pytest.raises(NGramError, match=message) as error:
        NGram.load(path)
    assert str(path) in str(error.value)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "short.arpa"
    whole = ARPA.rstrip("\n")
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(NGramError, match=r"short\.arpa"):
            NGram.load(path)
    lines = ARPA.split("\n")
    path.write_text("\n".join(lines[:15]))
    with pytest.raises(NGramError, match="cut short: it ends at line 15 after 1 of 4 2-grams"):
        NGram.load(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(NGramError, match=r"no\.arpa does not exist"):
        NGram.load(tmp_path / "no.arpa")
    with pytest.raises(NGramError, match="cannot read"):
        NGram.load(tmp_path)
    path = tmp_path / "m.arpa.gz"
    path.write_bytes(gzip.compress(ARPA.encode())[:-20])
    with pytest.raises(NGramError, match="cut short or damaged"):
        NGram.load(path)
    path.write_bytes(ARPA.replace("B", "\xe9").encode("latin-1"))
    with pytest.raises(NGramError, match="not UTF-8"):
        NGram.load(path)
    with pytest.raises(NGramError, match="cannot write"):
        NGram.train(["A"], 2).save(tmp_path / "no" / "m.arpa")


def test_training_that_cannot_be():
    with pytest.raises(NGramError, match="no text"):
        NGram.train(["", " "])
    with pytest.raises(NGramError, match="holds </s>"):
        NGram.train(["A </s>"])
    for order, prune in ((0, (0,)), (3, (1,)), (3, (0, 2, 1)), (3, ())):
        with pytest.raises(NGramError, match="order >= 1 and prune from 0"):
            NGram.train(["A B"], order, prune)


def test_one_word_is_enough():
    model = NGram.train(["A"], 3)
    assert math.isfinite(model.sentence("A B A"))
    assert model.sentence("A") > model.sentence("B")
