"""Greedy, prefix and lexicon search against the sum or the maximum over every path there is, and against flashlight."""

import itertools
import math

import numpy as np
import pytest
import torch

from senone.ctc import BLANK, Beam, CTCError, spell, text_of
from senone.ctc.align import align
from senone.ctc.beam import greedy, prefix_beam
from senone.ctc.lexicon import LexiconDecoder
from senone.ctc.ngram import NGram

VOCAB = ("<pad>", "|", "A", "B")
WORDS = ("A", "AB", "BA", "B", "AA")
TEXT = ["A AB", "BA A A", "AB AB B", "AA A", "B"]
HF = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
WIDE = 100_000


class Bigrams:
    """A language model that is no n-gram of ours: natural logarithms, the last word as its state."""

    def start(self):
        return "."

    def score(self, state, word):
        return -0.3 - 0.7 * ((len(word) * 5 + len(state) * 3 + ord(word[0])) % 4), word

    def finish(self, state):
        return -0.2 - 0.5 * (len(state) % 3)


def total(lm, words):
    state, out = lm.start(), 0.0
    for word in words:
        score, state = lm.score(state, word)
        out += score
    return out + lm.finish(state)


def collapse(path):
    return tuple(k for k, _ in itertools.groupby(path) if k != BLANK)


def noise(frames, vocab=VOCAB, seed=0, sharp=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(frames, len(vocab), generator=generator, dtype=torch.float64)).log_softmax(1)


def paths(log_probs):
    """Every path with its log-probability."""
    rows = log_probs.tolist()
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        yield path, sum(rows[t][k] for t, k in enumerate(path))


def summed(log_probs):
    out = {}
    for path, score in paths(log_probs):
        tokens = collapse(path)
        out[tokens] = np.logaddexp(out.get(tokens, -math.inf), score)
    return out


def ranked(scores):
    return sorted(scores.items(), key=lambda item: -item[1])


# greedy


def test_greedy_joins_repeats_and_drops_blanks():
    path = [0, 2, 2, 0, 2, 3, 1, 0, 3]
    log_probs = torch.full((9, 4), -5.0)
    log_probs[range(9), path] = -0.25
    found = greedy(log_probs, VOCAB)
    assert (found.text, found.tokens) == ("AAB B", (2, 2, 3, 1, 3))
    assert found.spans == ((1, 3), (4, 5), (5, 6), (6, 7), (8, 9))
    assert found.scores == (-0.25,) * 5 and found.score == found.acoustic == -2.25


def test_names_in_angle_brackets_are_no_text():
    log_probs = torch.full((3, len(HF)), -9.0)
    log_probs[range(3), [1, HF.index("T"), 3]] = 0.0
    assert greedy(log_probs, HF).text == "T"
    assert all(not {1, 2, 3} & set(found.tokens) for found in prefix_beam(log_probs, HF, nbest=50))


# prefix search


@pytest.mark.parametrize("seed", range(3))
def test_prefix_search_sums_over_every_alignment(seed):
    log_probs = noise(5, seed=seed)
    found = prefix_beam(log_probs, VOCAB, beam=Beam(WIDE), nbest=WIDE)
    every = summed(log_probs)
    assert len(found) == len(every)
    assert [one.tokens for one in found[:30]] == [tokens for tokens, _ in ranked(every)[:30]]
    for one in found:
        assert one.score == one.acoustic == pytest.approx(every[one.tokens], abs=1e-9)
    assert np.logaddexp.reduce([one.score for one in found]) == pytest.approx(0, abs=1e-9)


def test_prefix_search_agrees_with_the_ctc_loss_of_torch():
    log_probs = noise(9, seed=5)

    def loss(tokens):
        sizes = torch.tensor([len(log_probs)]), torch.tensor([len(tokens)])
        return float(torch.nn.functional.ctc_loss(log_probs[:, None], torch.tensor([tokens]), *sizes, reduction="sum"))

    for one in prefix_beam(log_probs, VOCAB, beam=Beam(WIDE), nbest=5):
        assert one.score == pytest.approx(-loss(one.tokens), abs=1e-9)
    for one in prefix_beam(log_probs, VOCAB, beam=Beam(20), nbest=5):
        assert one.score <= -loss(one.tokens) + 1e-9  # what the beam dropped is missing


@pytest.mark.parametrize("seed", range(3))
def test_prefix_search_with_a_language_model(seed):
    log_probs, lm, beam = noise(5, seed=seed), Bigrams(), Beam(WIDE, lm_weight=1.3, word_score=0.4)
    every = summed(log_probs)
    wanted = {
        tokens: score + 1.3 * total(lm, text_of(tokens, VOCAB).split()) + 0.4 * len(text_of(tokens, VOCAB).split())
        for tokens, score in every.items()
    }
    found = prefix_beam(log_probs, VOCAB, lm, beam, nbest=WIDE)
    assert [one.tokens for one in found[:20]] == [tokens for tokens, _ in ranked(wanted)[:20]]
    for one in found:
        assert one.score == pytest.approx(wanted[one.tokens], abs=1e-9)
        words = one.text.split()
        assert one.lm == pytest.approx(total(lm, words)) and one.acoustic == pytest.approx(every[one.tokens])
        assert one.score == pytest.approx(one.acoustic + 1.3 * one.lm + 0.4 * len(words))


def test_a_narrow_beam_finds_no_more_than_a_wide_one():
    log_probs = noise(40, HF, seed=1, sharp=1.0)
    scores = [prefix_beam(log_probs, HF, beam=Beam(size))[0].score for size in (1, 4, 16, 64)]
    assert scores == sorted(scores) and scores[0] < scores[-1]


# lexicon search


def texts(path):
    """The words of a path that ends between two words or at the end of one; None if they are not in the lexicon."""
    spelled = "".join(VOCAB[k] for k in collapse(path)).replace("|", " ").split()
    return " ".join(spelled) if all(word in WORDS for word in spelled) else None


def best_paths(log_probs, lm=None, weight=0.0, bonus=0.0):
    out = {}
    for path, score in paths(log_probs):
        text = texts(path)
        if text is not None:
            words = text.split()
            score += (weight * total(lm, words) + bonus * len(words)) if lm else 0.0
            out[text] = max(out.get(text, -math.inf), score)
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lm", [None, Bigrams(), NGram.train(TEXT, 3)], ids=["none", "neural", "ngram"])
def test_lexicon_search_finds_the_best_path_of_all(lm, seed):
    log_probs = noise(6, seed=seed)
    wanted = best_paths(log_probs, lm, 1.7, -0.6)
    assert LexiconDecoder(WORDS, VOCAB, lm)(log_probs, Beam(WIDE, 1.7, -0.6))[0].text == ranked(wanted)[0][0]
    found = LexiconDecoder(WORDS, VOCAB, lm)(log_probs, Beam(WIDE, 1.7, -0.6), nbest=WIDE)
    assert [one.text for one in found[:10]] == [text for text, _ in ranked(wanted)[:10]]
    for one in found:
        assert one.score == pytest.approx(wanted[one.text], abs=1e-9)
        words = one.text.split()
        assert one.lm == pytest.approx(total(lm, words) if lm else 0.0)
        weighted = 1.7 * one.lm - 0.6 * len(words) if lm else 0.0
        assert one.score == pytest.approx(one.acoustic + weighted)


def flashlight(tmp_path, log_probs, words, model, beam, vocab):
    """The words and score of flashlight's decoder, after one more frame in which a "|" or a blank costs nothing."""
    reason = "flashlight-text or kenlm is missing: pip install flashlight-text kenlm"
    decoder = pytest.importorskip("flashlight.lib.text.decoder", reason=reason)
    kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason=reason)
    dictionary = pytest.importorskip("flashlight.lib.text.dictionary", reason=reason)
    model.save(tmp_path / "lm.arpa")
    known = dictionary.create_word_dict({word: [list(word)] for word in [*words, "<unk>"]})
    lm = kenlm.KenLM(str(tmp_path / "lm.arpa"), known)
    bar = vocab.index("|")
    trie = decoder.Trie(len(vocab), bar)
    for word in words:
        _, score = lm.score(lm.start(False), known.get_index(word))
        trie.insert([vocab.index(letter) for letter in word] + [bar], known.get_index(word), score)
    trie.smear(decoder.SmearingMode.MAX)
    threshold = min(beam.threshold, 1e9)
    options = decoder.LexiconDecoderOptions(
        beam.size, len(vocab), threshold, beam.lm_weight, beam.word_score, -math.inf, 0.0, False,
        decoder.CriterionType.CTC,
    )  # fmt: skip
    search = decoder.LexiconDecoder(options, trie, lm, bar, BLANK, known.get_index("<unk>"), [], False)
    end = np.full((1, len(vocab)), -1e6)
    end[0, [BLANK, bar]] = 0.0
    frames = np.ascontiguousarray(np.concatenate([log_probs.numpy(), end]), np.float32)
    result = search.decode(frames.ctypes.data, *frames.shape)[0]
    return " ".join(known.get_entry(k) for k in result.words if k >= 0), result.score


@pytest.mark.parametrize("seed", range(6))
def test_lexicon_search_agrees_with_flashlight(tmp_path, seed):
    pytest.importorskip("kenlm", reason="kenlm is missing: pip install kenlm")
    words = ["THE", "CAT", "SAT", "ON", "A", "MAT", "MATS", "AT", "TEA", "SEAT"]
    model = NGram.train(["THE CAT SAT ON THE MAT", "A CAT AT TEA", "THE SEAT AT THE MATS", "SAT ON A SEAT"] * 2, 3)
    log_probs = noise(40, HF, seed=seed, sharp=2.5)
    beam = Beam(2000, lm_weight=1.5, word_score=-0.5)
    found = LexiconDecoder(words, HF, model)(log_probs, beam)[0]
    text, score = flashlight(tmp_path, log_probs, words, model, beam, HF)
    assert found.text == text
    assert found.score == pytest.approx(score, abs=1e-3)  # flashlight reads single precision


def test_the_end_of_the_recording_ends_a_word_and_half_a_word_is_dropped():
    log_probs = torch.full((4, 4), -8.0)
    log_probs[range(4), [2, 3, 0, 0]] = 0.0
    assert LexiconDecoder(["AB"], VOCAB)(log_probs)[0].tokens == (2, 3)
    log_probs[range(4), [2, 3, 1, 2]] = 0.0
    log_probs[range(2, 4), [0, 3]] = -8.0
    found = LexiconDecoder(["AB"], VOCAB)(log_probs, Beam(1))[0]
    assert (found.text, found.tokens) == ("AB", (2, 3, 1))


def test_every_token_has_its_frames():
    log_probs = noise(60, HF, seed=3, sharp=3.0)
    decoder = LexiconDecoder(["TEA", "SEAT", "A", "AT"], HF)
    for found in (greedy(log_probs, HF), prefix_beam(log_probs, HF)[0], decoder(log_probs)[0]):
        assert len(found.tokens) == len(found.spans) == len(found.scores) > 0
        edges = [edge for span in found.spans for edge in span]
        assert edges == sorted(edges) and all(a < b for a, b in found.spans) and 0 <= edges[0] <= edges[-1] <= 60
    log_probs[:, 4] -= 9  # with no second "|" in a pause the best path is the forced alignment
    found, forced = decoder(log_probs)[0], align(log_probs, decoder(log_probs)[0].tokens, HF)
    assert (found.spans, found.scores) == (forced.spans, pytest.approx(forced.scores)) and len(found.spans) > 5
    assert found.score == pytest.approx(forced.score)


def test_pruning_of_what_is_unlikely_changes_nothing_that_is_likely():
    log_probs = noise(60, HF, seed=4, sharp=5.0)
    decoder = LexiconDecoder(["TEA", "SEAT", "A", "AT", "ON", "NO"], HF)
    exact = decoder(log_probs, Beam(500))[0]
    assert decoder(log_probs, Beam(500, threshold=60.0, floor=-30.0))[0] == exact
    one = decoder(log_probs, Beam(500, threshold=0.0))[0]  # a threshold that does prune: the best of each frame
    assert one.score < exact.score


# text, and what is refused


def test_spelling_there_and_back():
    tokens = spell("The  cat's", HF)
    assert tokens[-1] == 4 and text_of(tokens, HF) == "THE CAT'S"
    assert spell("ab", ("-", "|", "a", "b")) == (2, 3, 1)
    with pytest.raises(CTCError, match="no 'É', which 'CAFÉ' needs"):
        spell("A CAFÉ", HF)
    with pytest.raises(CTCError, match="transcript is empty"):
        spell("  ", HF)
    with pytest.raises(CTCError, match=r"no '\|' between words"):
        spell("A", ("-", "A"))


@pytest.mark.parametrize("search", [greedy, prefix_beam, lambda x, vocab: LexiconDecoder(WORDS, vocab)(x)])
def test_log_probabilities_that_do_not_fit(search):
    with pytest.raises(CTCError, match=r"\(frame, 4\), one a token, got shape \(5, 3\)"):
        search(torch.zeros(5, 3), VOCAB)
    with pytest.raises(CTCError, match="NaN"):
        search(torch.full((5, 4), math.nan), VOCAB)


def test_searches_that_cannot_be():
    with pytest.raises(CTCError, match="allow no path"):
        prefix_beam(torch.full((2, 4), -math.inf), VOCAB)
    with pytest.raises(CTCError, match="allow no path"):
        LexiconDecoder(WORDS, VOCAB)(torch.full((2, 4), -math.inf))
    with pytest.raises(CTCError, match="no words"):
        LexiconDecoder([], VOCAB)
    with pytest.raises(CTCError, match="size >= 1"):
        Beam(0)


def test_no_frames_are_no_words():
    nothing = torch.zeros(0, 4)
    assert greedy(nothing, VOCAB).text == prefix_beam(nothing, VOCAB)[0].text == ""
    assert LexiconDecoder(WORDS, VOCAB)(nothing)[0].text == ""
