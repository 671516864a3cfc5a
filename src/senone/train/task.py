"""What the training loop asks of a task, and the part of a recipe that is the same for all tasks."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from senone.audio import Audio
from senone.errors import SenoneError
from senone.train.optim import Optimiser

Batch = dict[str, Any]


class TrainError(SenoneError):
    """A recipe that does not fit its task, or a run that cannot go on."""


class Task(Protocol):
    """Nets that are trained together.

    players: the first is the model, which is averaged and exported. In every step the players move in reverse order,
    so that the model moves last; what one computes and another needs can be left in the batch.
    """

    players: dict[str, nn.Module]

    def losses(self, batch: Batch, player: str) -> dict[str, Tensor]:
        """The losses of this player, unweighted; their names are those of weights and logs. None of them: it rests."""
        ...

    def metrics(self) -> dict[str, float]:
        """What else to log, since the last time."""
        ...

    def examples(self, batch: Batch) -> dict[str, Audio]:
        """What to listen to."""
        ...


@dataclass(frozen=True)
class Recipe:
    """What every run has. Durations in seconds unless the name says otherwise.

    data, noise: see `data.manifest.read`. batch: over all processes, of crops of `crop` seconds. gain: crops are made
    up to so many dB quieter. noisy: share of rows with noise, where there is any. memory: GB of decoded sound to keep.
    ema: of the weights that are exported. init: a model or a run whose weights to start from,
    in the parts that it has.
    """

    data: str = ""
    noise: str = ""
    noisy: float = 0.5
    crop: float = 1.0
    batch: float = 16.0
    gain: float = 20.0
    memory: float = 2.0
    seed: int = 0
    steps: int = 10000
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float = 0.999
    init: str = ""
    log_steps: int = 50
    save_minutes: float = 3.0
    optim: dict[str, Optimiser] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
