"""What follows a unit, counted: the smallest language model, and the one that any other has to beat.

model = Bigram.of(lines, vocab=100)

Witten and Bell's smoothing (1991): after a, what was never seen has as much as the kinds of what was:
p(b|a) = (count(a b) + kinds(a) p(b)) / (count(a) + kinds(a)), and p(b) = (count(b) + 1) / (all + vocab).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from senone.hub import Pretrained
from senone.lm import LanguageModel, LMError


@dataclass(frozen=True)
class Config:
    """vocab: how many tokens there are."""

    vocab: int = 100


class Bigram(LanguageModel, Pretrained):
    """A table of log-probabilities (before, after); its cache is nothing, for it sees one token back."""

    Config = Config
    model_type = "senone_bigram"
    table: Float[Tensor, "vocab vocab"]

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config, self.vocab = config, config.vocab
        self.register_buffer("table", torch.zeros(config.vocab, config.vocab))

    @classmethod
    def of(cls, lines: Iterable[Sequence[int]], vocab: int) -> "Bigram":
        """Counted on these lines of tokens. Raises LMError for tokens that are not in the vocabulary, or no lines."""
        pairs, single = np.zeros((vocab, vocab)), np.zeros(vocab)
        for line in lines:
            tokens = np.asarray(line, np.int64)
            if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab:
                raise LMError(f"tokens {tokens.min()} to {tokens.max()} for a vocabulary of {vocab}")
            np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
            np.add.at(single, tokens, 1)
        if not pairs.any():
            raise LMError("there is no line of two tokens to count")
        kinds = (pairs > 0).sum(1, keepdims=True)
        p = (single + 1) / (single.sum() + vocab)
        table = (pairs + np.maximum(kinds, 1) * p) / (pairs.sum(1, keepdims=True) + np.maximum(kinds, 1))
        model = cls(Config(vocab))
        model.table.copy_(torch.from_numpy(np.log(table)))
        return model.eval()

    def forward(
        self, tokens: Int[Tensor, "batch time"], cache: None = None
    ) -> tuple[Float[Tensor, "batch time vocab"], None]:
        """The rows of the table."""
        return self.table[tokens], None
