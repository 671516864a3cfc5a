"""The contract of language models, on a table that is known by heart and on a net that forgets nothing."""

from dataclasses import dataclass
from math import log

import pytest
import torch
from torch import nn

from senone import hub
from senone.lm import LanguageModel, LMError
from senone.models.bigram import Bigram, Config


@dataclass(frozen=True)
class Shape:
    vocab: int = 7


class Recurrent(LanguageModel):
    """A GRU of random weights: its cache is its state."""

    Config, model_type = Shape, "test_recurrent"

    def __init__(self, config=Shape(), bos=None):
        super().__init__()
        self.config, self.vocab, self.bos = config, config.vocab, bos
        self.embed = nn.Embedding(config.vocab, 8)
        self.net, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, config.vocab)

    def forward(self, tokens, cache=None):
        x, cache = self.net(self.embed(tokens), cache)
        return self.head(x), cache


def test_score_is_the_sum_over_the_tokens_one_by_one():
    """With the cache passed on, token by token; with and without a first token."""
    for bos in (None, 3):
        model, tokens = Recurrent(bos=bos), torch.tensor([[1, 4, 0, 6, 2]])
        line = tokens[0].tolist() if bos is None else [bos, *tokens[0].tolist()]
        total, cache = 0.0, None
        for now, then in zip(line, line[1:], strict=False):
            logits, cache = model(torch.tensor([[now]]), cache)
            total += logits[0, 0].log_softmax(-1)[then].item()
        assert float(model.score(tokens)) == pytest.approx(total, abs=1e-5)
        assert model.scored(5) == (4 if bos is None else 5)


def test_rows_of_a_batch_do_not_see_their_padding():
    model, rows = Recurrent(), [[1, 2, 3, 4, 5, 6], [5, 5, 5], [0, 6]]
    batch = torch.full((3, 6), 99)  # what no vocabulary knows
    for k, row in enumerate(rows):
        batch[k, : len(row)] = torch.tensor(row)
    got = model.score(batch, torch.tensor([6, 3, 2]))
    assert got.tolist() == pytest.approx([float(model.score(torch.tensor([row]))) for row in rows], abs=1e-6)
    assert batch[2, 5] == 99  # the caller's tokens are left alone


def test_what_cannot_be_scored_is_refused():
    model = Recurrent()
    with pytest.raises(LMError, match="tokens 1 to 7 for a vocabulary of 7"):
        model.score(torch.tensor([[1, 7]]))
    with pytest.raises(LMError, match="a line of 1 tokens has nothing to score"):
        model.score(torch.tensor([[1]]))
    assert torch.isfinite(Recurrent(bos=0).score(torch.tensor([[1]]))).all()
    with pytest.raises(LMError, match="LanguageModel does not say what follows"):
        LanguageModel()(torch.zeros(1, 1, dtype=torch.long))


def test_bigrams_are_counted_and_smoothed():
    """Lines 0 0 1 and 0 1: after 0 come 0 once and 1 twice; 1 and 2 are followed by nothing."""
    model = Bigram.of([[0, 0, 1], [0, 1]], 3)
    p = [4 / 8, 3 / 8, 1 / 8]
    want = [[(c + 2 * q) / 5 for c, q in zip((1, 2, 0), p, strict=True)], p, p]
    assert model.table.exp().tolist() == [pytest.approx(row, abs=1e-6) for row in want]
    assert float(model.score(torch.tensor([[0, 0, 1]]))) == pytest.approx(log(want[0][0]) + log(want[0][1]), abs=1e-6)
    assert model.table.exp().sum(1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_a_bigram_is_saved_and_found(tmp_path):
    model = Bigram.of([[0, 3, 1, 2, 3, 3]], 4)
    model.save_pretrained(tmp_path)
    again = hub.load(tmp_path)
    assert isinstance(again, Bigram) and torch.equal(again.table, model.table) and again.config == Config(4)


def test_lines_that_cannot_be_counted_are_refused():
    for lines, says in (([[0, 4]], "tokens 0 to 4"), ([[-1, 0]], "tokens -1"), ([], "no line"), ([[1]], "no line")):
        with pytest.raises(LMError, match=says):
            Bigram.of(lines, 4)
