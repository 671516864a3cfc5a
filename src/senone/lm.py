"""The contract of language models over tokens, as far as scoring needs it; generation comes with the first that speaks.

class Mine(LanguageModel):
    def forward(self, tokens, cache=None):
        return logits, cache

    Mine(...).score(tokens)  # log-probability of each row, in nats
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from senone.errors import SenoneError
from senone.hub import Pretrained

Cache = Any  # a plain tree of tensors and numbers, passed in and returned, never changed in place


class LMError(SenoneError):
    """Tokens that a language model does not know, or too few of them to say anything about."""


class LanguageModel(nn.Module, Pretrained):
    """Base of all language models. A subclass sets the attributes in `__init__` and writes `forward`; it is causal.

    vocab: tokens are 0 to vocab - 1. bos: the token that every line begins with; without one, the first token of a line
    is context and not scored.
    """

    vocab: int
    bos: int | None = None

    def forward(
        self, tokens: Int[Tensor, "batch time"], cache: Cache = None
    ) -> tuple[Float[Tensor, "batch time vocab"], Cache]:
        """Logits of what follows each token, and the cache with which to go on: in two calls or in one, the same."""
        raise LMError(f"{type(self).__name__} does not say what follows")

    def scored(self, length: int) -> int:
        """How many of `length` tokens have a probability."""
        return max(0, length if self.bos is not None else length - 1)

    @torch.no_grad()
    def score(
        self, tokens: Int[Tensor, "batch time"], lengths: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch"]:
        """Log-probability of each row, in nats: a sum over its tokens, the end of the line not among them.

        lengths: tokens of a row that count (None: all). Raises LMError for a token that is not in the vocabulary, or a
        row in which nothing is scored.
        """
        ends = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths.cpu()
        real = torch.arange(tokens.shape[1]) < ends[:, None]
        known = tokens.cpu()[real]
        if len(known) and not 0 <= int(known.min()) <= int(known.max()) < self.vocab:
            raise LMError(f"tokens {int(known.min())} to {int(known.max())} for a vocabulary of {self.vocab}")
        if not all(self.scored(int(end)) for end in ends):
            raise LMError(f"a line of {int(ends.min())} tokens has nothing to score")
        tokens, real = tokens.where(real.to(tokens.device), 0), real.to(tokens.device)
        if self.bos is not None:
            tokens = torch.cat([tokens.new_full((len(tokens), 1), self.bos), tokens], 1)
        else:
            real = real[:, 1:]
        logits, _ = self(tokens[:, :-1])
        found = logits.double().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return found.where(real, 0).sum(1)
