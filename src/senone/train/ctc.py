"""Fine-tuning with CTC (wav2vec 2.0 §3.3, §4.3, appendix B; HuBERT §II-E): whole utterances, letters, masks.

The convolutions stay as they were pre-trained; for the first updates only the head learns. Time and channel masks are
SpecAugment's, laid on the projected features. Learning curves with few labels are what pre-training is for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from senone import hub
from senone.audio import Audio
from senone.ctc import CTCError, spell, text_of
from senone.ctc.beam import greedy
from senone.ctc.text import plain
from senone.ctc.transcribe import Decode, decoder
from senone.ctc.tune import cer, wer
from senone.data.loader import Store
from senone.data.manifest import Cut, DataError, read
from senone.data.utterances import Utterances, subset
from senone.models.ctc import ENGLISH, Config, Recogniser, ctc_loss, encoder_config
from senone.nn.mask import spans
from senone.train import parallel
from senone.train.optim import Optimiser
from senone.train.task import Batch, Recipe, TrainError

DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "activation_dropout": 0.1}


@dataclass(frozen=True)
class CTCRecipe(Recipe):
    """What fine-tuning adds.

    encoder: a pre-trained one, by any name that `senone.load` knows. model: keys of its config to change. scratch: take
    its shape only (or none, where model has a model_type) and train all of it, convolutions too, from random weights.
    vocabulary: "english" letters, where others in a transcript are an error, or those of the "transcripts". hours: of
    labelled speech to use, 0 for all. freeze: updates in which only the head learns. mask_p, channel_p: shares of
    frames and channels where a masked span of mask_length or channel_length starts. dev: measured on every dev_steps.
    """

    encoder: str = ""
    scratch: bool = False
    model: dict[str, Any] = field(default_factory=lambda: {**DROPOUT, "layer_drop": 0.1})
    vocabulary: str = "english"
    hours: float = 0.0
    dev: str = ""
    dev_steps: int = 500
    freeze: int = 10000
    mask_p: float = 0.065
    mask_length: int = 10
    channel_p: float = 0.004
    channel_length: int = 64
    optim: dict[str, Optimiser] = field(
        default_factory=lambda: {
            "recogniser": Optimiser(
                lr=5e-5, betas=(0.9, 0.98), warmup=2000, final=2.5e-6, clip=0.0, schedule="tri-stage"
            )
        }
    )
    weights: dict[str, float] = field(default_factory=lambda: {"ctc": 1.0})


class Score(NamedTuple):
    """Errors of words and of letters, spaces included, as shares of those there are."""

    wer: float
    cer: float


class CTCTask:
    """A Recogniser. Loss: ctc, in nats an utterance. The log has the error rates of the last batch (masked, with
    dropout), what was heard of one utterance, and, every `dev_steps`, dev/wer and dev/cer of greedy decoding."""

    def __init__(self, model: Recogniser, recipe: CTCRecipe, dev: list[Cut] | None = None) -> None:
        self.model, self.recipe, self.dev = model, recipe, dev or []
        self.players: dict[str, nn.Module] = {"recogniser": model}
        self._last: tuple[Tensor, Tensor, Batch] | None = None
        self._turn = 0
        for name in recipe.weights.keys() - {"ctc"}:
            raise TrainError(f"unknown loss '{name}' in weights; known: ctc")
        for name in recipe.optim.keys() - self.players.keys():
            raise TrainError(f"unknown player '{name}' in optim; known: recogniser")

    def losses(self, batch: Batch, player: str) -> dict[str, Tensor]:
        """Divided by the number of utterances over all processes, as one process would."""
        recipe = self.recipe
        frozen = not recipe.scratch and batch["step"] < recipe.freeze
        logits = self.model.logits(batch["wave"], batch["lengths"], batch["mask"], batch["channel_mask"], frozen=frozen)
        frames = self.model.encoder.frames(batch["lengths"])
        loss = ctc_loss(logits, frames, batch["targets"], batch["sizes"])
        count = parallel.total(batch["weight"].sum()).clamp(min=1)
        self._last = logits.detach(), frames, batch
        return {"ctc": (loss * batch["weight"]).sum() * parallel.world() / count}

    def metrics(self) -> dict[str, Any]:
        """See the class; on `dev` with the weights as they are, not with their average."""
        if self._last is None:
            return {}
        (logits, frames, batch), vocab = self._last, self.model.config.vocabulary
        targets = zip(batch["targets"], batch["sizes"], strict=True)
        truth = [text_of(tuple(row[:n].tolist()), vocab) for row, n in targets]
        heard = [greedy(row[:n], vocab).text for row, n in zip(logits, frames, strict=True)]
        out: dict[str, Any] = {"wer": wer(truth, heard), "cer": cer(truth, heard), "text": truth[0], "heard": heard[0]}
        done = batch["step"] + 1
        if self.dev and (done // self.recipe.dev_steps > self._turn or done == self.recipe.steps):
            self._turn = done // self.recipe.dev_steps
            out["dev/wer"], out["dev/cer"] = evaluate(self.model, self.dev)
        return out

    def examples(self, batch: Batch) -> dict[str, Audio]:
        """Nothing to listen to: the log has what was heard."""
        return {}


class Masks:
    """The time and channel mask of an utterance, for `data.utterances`."""

    def __init__(self, model: Recogniser, recipe: CTCRecipe) -> None:
        self.model, self.recipe = model, recipe

    def __call__(self, rng: np.random.Generator, samples: int) -> dict[str, np.ndarray]:
        r, width = self.recipe, self.model.encoder.config.width
        frames = int(self.model.encoder.frames(samples))
        mask = spans(frames, r.mask_p, r.mask_length, rng=rng) if r.mask_p else np.zeros(frames, bool)
        return {"mask": mask, "channel_mask": spans(width, r.channel_p, r.channel_length, rng=rng, least=0)}


def prepare(recipe: CTCRecipe) -> tuple[CTCTask, Utterances]:
    """The task and the data of a recipe. Recordings without a transcript are left out; so are, and listed, those too
    short for theirs. Raises TrainError, DataError or HubError naming what is wrong."""
    cuts = subset(_read(recipe.data), recipe.hours)
    texts = [plain(cut.text or "") for cut in cuts]
    if recipe.vocabulary not in ("english", "transcripts"):
        raise TrainError(f"vocabulary must be english or transcripts, got '{recipe.vocabulary}'")
    letters = sorted(set("".join(texts)) - {" "})
    vocabulary = ENGLISH if recipe.vocabulary == "english" else ("<pad>", "|", *letters)
    tokens = [_spelt(cut, text, vocabulary) for cut, text in zip(cuts, texts, strict=True)]
    model = _model(recipe, vocabulary)
    kept, short = [], {}
    for k, cut in enumerate(cuts):
        samples = round(cut.seconds * model.sample_rate)
        need = len(tokens[k]) + sum(a == b for a, b in zip(tokens[k], tokens[k][1:], strict=False))
        if samples < model.encoder.reach or model.encoder.frames(samples) < need:
            short[cut.path] = f"{cut.seconds:g} s are too short for its transcript of {len(tokens[k])} letters"
        else:
            kept.append(k)
    if not kept:
        raise DataError(f"every recording in {recipe.data} is too short for its transcript")
    store = Store([cuts[k] for k in kept], model.sample_rate, recipe.memory * 1e9)
    store.skipped |= short
    data = Utterances(
        store,
        [tokens[k] for k in kept],
        recipe.batch,
        Masks(model, recipe),
        seed=recipe.seed,
        rank=parallel.rank(),
        world=parallel.world(),
    )
    return CTCTask(model, recipe, _read(recipe.dev, "dev") if recipe.dev else []), data


def evaluate(model: Recogniser, cuts: list[Cut], decode: Decode | None = None) -> Score:
    """Of cuts with text; `decode`: see `ctc.transcribe.decoder`, by default greedily. Raises AudioError for a file that
    cannot be read, CTCError where there are no words."""
    decode = decode or decoder(model)
    heard = [decode(log_probs).text for log_probs in listen(model, cuts)]
    truth = [plain(cut.text or "") for cut in cuts]
    return Score(wer(truth, heard), cer(truth, heard))


@torch.no_grad()
def listen(model: Recogniser, cuts: list[Cut]) -> Iterator[Float[Tensor, "frame vocab"]]:
    """Log-probabilities of each cut, heard alone and whole; the model is in evaluation mode while it listens."""
    training, device = model.training, model.lm_head.weight.device
    for cut in cuts:
        wave = Audio.read(cut.path, start=cut.start, seconds=cut.seconds).mono().resample(model.sample_rate).wave
        model.eval()
        logits = model.logits(wave.to(device))[0]
        model.train(training)
        yield logits.float().log_softmax(-1).cpu()


def _read(source: str, split: str = "train") -> list[Cut]:
    """Those of the cuts that have a transcript."""
    if not source:
        raise TrainError("no data: say data=FOLDER or data=MANIFEST")
    cuts = [cut for cut in read(source, split) if plain(cut.text or "")]
    if not cuts:
        raise DataError(f"no recording in {source} has a transcript: a manifest needs a column 'text'")
    return cuts


def _model(recipe: CTCRecipe, vocabulary: tuple[str, ...]) -> Recogniser:
    if not recipe.encoder and not (recipe.scratch and "model_type" in recipe.model):
        raise TrainError("no encoder: say encoder=NAME or encoder=FOLDER, or scratch=true and model.model_type=...")
    encoder = hub.load(recipe.encoder) if recipe.encoder else None
    if recipe.scratch:
        shape = encoder_config(encoder) if encoder is not None else {}
        return Recogniser(Config(shape | recipe.model | {"feature_grad": 1.0}, vocabulary))
    return Recogniser.around(encoder, vocabulary, recipe.model | {"feature_grad": 0.0})  # type: ignore[arg-type]


def _spelt(cut: Cut, text: str, vocab: tuple[str, ...]) -> tuple[int, ...]:
    try:
        return spell(text, vocab)
    except CTCError as error:
        raise DataError(f"{cut.path}: {error}") from None
