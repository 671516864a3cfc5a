"""Training a codec: reconstruction, discriminators that listen to short pieces (SoundStream §III-D, E), teachers."""

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from senone import config as configs
from senone import hub
from senone.audio import Audio
from senone.data.loader import Crops, Store
from senone.data.manifest import read
from senone.loss import adversarial, spectral
from senone.loss.adversarial import Kind
from senone.models.units import Units
from senone.nn import discriminator as nets
from senone.tokenizer import AudioTokenizer, Output
from senone.train import parallel
from senone.train.optim import Optimiser
from senone.train.task import Batch, Recipe, TrainError
from senone.train.teacher import Layer, Perceptual, Teacher

EXAMPLES = 3


@dataclass(frozen=True)
class Judge:
    """A discriminator: width of its first layer; n_fft of an stft one, scales of a wave or a scale one.

    kind: SoundStream's stft and wave; HiFi-GAN's period and scale; stfts, EnCodec's; X-codec2's slim (its periods) and
    spectrogram. sizes: periods, or windows of stfts and spectrogram; none: the papers'.
    """

    kind: Literal["stft", "wave", "period", "scale", "stfts", "slim", "spectrogram"] = "stft"
    width: int = 16
    n_fft: int = 1024
    scales: int = 3
    sizes: tuple[int, ...] = ()

    def build(self) -> nn.Module:
        """With random weights. Raises ConfigError for a size below 1."""
        configs.at_least(self, 1, "width", "n_fft", "scales", *(["sizes"] if self.sizes else []))
        if self.kind == "stft":
            return nets.STFTDiscriminator(self.width, self.n_fft)
        if self.kind in ("wave", "scale"):
            return (nets.WaveDiscriminator if self.kind == "wave" else nets.MultiScale)(self.width, self.scales)
        if self.kind in ("period", "slim"):
            return nets.MultiPeriod(self.width, 3 if self.kind == "period" else 2, self.sizes or nets.PERIODS)
        if self.kind == "stfts":
            return nets.MultiSTFT(self.width, self.sizes or nets.WINDOWS)
        return nets.MultiSpectrogram(self.width, self.sizes or nets.UNEVEN)


@dataclass(frozen=True)
class CodecRecipe(Recipe):
    """What training a codec adds.

    dropout: share of rows that use a random number of levels, the others use all. judged: seconds of a crop that the
    discriminators hear. adversarial_from: the step at which they begin. tilt: above 1, the random numbers of levels are
    low ones more often than in SoundStream's uniform draw. mel_windows: see `loss.spectral.multiscale_mel`.
    continuous: steps without quantizer at the start, so that k-means meets vectors that mean something.
    adversarial: see `loss.adversarial`. teacher, layer: see `train.teacher.Teacher`, of a codec that learns from one.
    freeze: parts of the model that stay as they are, such as [encoder, quantizer].
    perceptual: an encoder by whose `perceptual_layers` the loss "perceptual" compares sounds from `perceptual_from` on,
    each channel by its own variance if `perceptual_relative`.
    denoiser: the flag alone learns, on in all rows, by the one loss "clean": vectors of noisy speech against those of
    the clean speech, nothing is decoded; for a codec that is done, `freeze` all of it but the denoiser.
    """

    continuous: int = 0
    dropout: float = 0.5
    tilt: float = 1.0
    mel_windows: tuple[int, ...] = spectral.MEL_WINDOWS
    judged: float = 0.5
    adversarial: Kind = "hinge"
    adversarial_from: int = 0
    teacher: str = ""
    layer: Layer = None
    freeze: tuple[str, ...] = ()
    perceptual: str = ""
    perceptual_layers: tuple[int, ...] = ()
    perceptual_from: int = 0
    perceptual_relative: bool = False
    denoiser: bool = False
    discriminators: tuple[Judge, ...] = ()
    optim: dict[str, Optimiser] = field(
        default_factory=lambda: {"generator": Optimiser(), "discriminator": Optimiser(lr=2e-4)}
    )
    weights: dict[str, float] = field(
        default_factory=lambda: dict(mel=1.0, logmel=0.0, stft=1.0, wave=0.0, commit=1.0, adv=1.0, feat=2.0)
    )


def prepare(kind: Any, recipe: Any) -> tuple["CodecTask", Crops]:
    """The task and the data of a recipe whose table `model`, if `kind` has a Config, is one. Raises TrainError or
    DataError naming what is wrong."""
    model = _built(kind, recipe)
    task = CodecTask(model, recipe)
    noise = Store(read(recipe.noise), model.sample_rate, recipe.memory * 1e9 / 4) if recipe.noise else None
    data = Crops(
        Store(read(recipe.data), model.sample_rate, recipe.memory * 1e9),
        round(recipe.crop * model.sample_rate),
        max(1, round(recipe.batch / recipe.crop)),
        gain=recipe.gain,
        noise=noise,
        noisy=recipe.noisy,
        flagged=1.0 if recipe.denoiser else 0.5,
        seed=recipe.seed,
        rank=parallel.rank(),
        world=parallel.world(),
    )
    return task, data


def _built(kind: Any, recipe: Any) -> AudioTokenizer:
    """A model with random weights; where a codec is built around a teacher (XCodec2), those of the teacher in it. Of
    Units it is their encoder, up to the layer that they are of."""
    if not hasattr(kind, "around"):
        return kind(recipe.model) if hasattr(kind, "Config") else kind()
    if not recipe.teacher:
        raise TrainError(f"{kind.__name__} is built around an encoder of speech: say teacher=NAME")
    if recipe.layer == "avg":
        raise TrainError(f"{kind.__name__} hears one layer of its teacher: say layer=NUMBER")
    encoder, layer = hub.load(recipe.teacher), recipe.layer
    if isinstance(encoder, Units):
        encoder, layer = encoder.encoder, encoder.config.layer if layer is None else layer
    return kind.around(encoder, recipe.model, layer)


class Discriminators(nn.Module):
    """Several as one."""

    def __init__(self, judges: tuple[Judge, ...]) -> None:
        super().__init__()
        self.judges = nn.ModuleList(judge.build() for judge in judges)

    def forward(self, wave: Float[Tensor, "batch samples"]) -> list[nets.Judgement]:
        return [judgement for judge in self.judges for judgement in judge(wave)]


class CodecTask:
    """Any AudioTokenizer with a decoder, and discriminators if the recipe has some.

    Losses of the generator: mel, logmel, stft, wave, adv, feat, perceptual, and those that the model makes itself, of
    its quantizer and of what a teacher says; of the discriminator: disc. Of a denoiser: clean, alone.
    """

    def __init__(self, model: AudioTokenizer, recipe: CodecRecipe) -> None:
        if not model.decodes:
            raise TrainError(f"{type(model).__name__} has no decoder: nothing to train")
        self.model, self.recipe, self.rate = model, recipe, model.sample_rate
        self.players: dict[str, nn.Module] = {"generator": model}
        if recipe.discriminators:
            self.players["discriminator"] = Discriminators(recipe.discriminators)
        self._count: Tensor | None = None
        parts = dict(model.named_children())
        for name in recipe.freeze:
            if name not in parts:
                raise TrainError("freeze: " + hub.unknown(f"part of {type(model).__name__}", name, list(parts)))
        self.frozen = [parts[name].requires_grad_(False) for name in recipe.freeze]
        self.teacher = self._teacher()
        self.perceptual = None
        if recipe.perceptual:
            self.perceptual = Perceptual(recipe.perceptual, recipe.perceptual_layers, model, recipe.perceptual_relative)
        known = {"mel", "logmel", "stft", "wave", "adv", "feat", "disc", "commit", "distill", "perceptual"}
        known |= self._own_losses()
        for name in recipe.weights.keys() - known:
            raise TrainError(f"unknown loss '{name}' in weights; known: {', '.join(sorted(known))}")
        for name in recipe.optim.keys() - {"generator", "discriminator"}:
            raise TrainError(f"unknown player '{name}' in optim; known: generator, discriminator")
        if recipe.noise and "denoise" not in inspect.signature(model.analyse).parameters:
            raise TrainError(f"{type(model).__name__} cannot remove noise: leave noise= out")
        if recipe.denoiser and not recipe.noise:
            raise TrainError("denoiser: nothing to learn from: say noise=FOLDER or noise=MANIFEST")

    def losses(self, batch: Batch, player: str) -> dict[str, Tensor]:
        """See `Task`. The codec runs once a step; its output stays in the batch for the generator's turn."""
        if self.recipe.denoiser:
            return self._clean(batch) if player == "generator" else {}
        judging = "discriminator" in self.players and batch["step"] >= self.recipe.adversarial_from
        if player == "discriminator" and not judging:
            return {}
        if "output" not in batch:
            batch["output"], batch["piece"] = self._forward(batch), self._piece(batch["wave"].shape[1])
        output: Output = batch["output"]
        fake, real = output.wave[:, 0].float(), batch["target"]
        a, b = fake[:, batch["piece"]], real[:, batch["piece"]]
        judge = self.players.get("discriminator")
        if player == "discriminator":
            assert judge is not None
            return {"disc": adversarial.discriminator(judge(b), judge(a.detach()), self.recipe.adversarial)}
        losses = {}
        with torch.autocast(fake.device.type, enabled=False):
            if self._weight("mel"):
                losses["mel"] = spectral.multiscale_mel(fake, real, self.rate, self.recipe.mel_windows)
            if self._weight("logmel"):
                losses["logmel"] = spectral.log_mel(fake, real, self.rate, self.recipe.mel_windows)
            if self._weight("stft"):
                # few bits cannot carry phase and would only learn silence: a row counts by its share of levels, squared
                share = batch["levels"] / len(self.model.quantizer.sizes)
                losses["stft"] = (share.square() * spectral.complex_stft(fake, real)).mean()
            if self._weight("wave"):
                losses["wave"] = (fake - real).abs().mean()
        if self.perceptual and batch["step"] >= self.recipe.perceptual_from and self._weight("perceptual"):
            losses["perceptual"] = self.perceptual(real, fake)  # most of the work, in the recipe's precision
        losses |= {name: loss for name, loss in output.losses.items() if self._weight(name)}
        if judging and judge is not None and (self._weight("adv") or self._weight("feat")):
            said = judge(a)
            if self._weight("adv"):
                losses["adv"] = adversarial.generator(said, self.recipe.adversarial)
            if self._weight("feat"):
                with torch.no_grad():
                    truth = judge(b)
                losses["feat"] = adversarial.features(truth, said)
        return losses

    def metrics(self) -> dict[str, float]:
        """By level: share of the codes in use, and their perplexity (of rows that use the level)."""
        if self._count is None:
            return {}
        share = self._count / self._count.sum(1, keepdim=True).clamp(min=1)
        perplexity = torch.special.entr(share).sum(1).exp().tolist()
        used = [int((row > 0).sum()) / size for row, size in zip(share, self.model.quantizer.sizes, strict=True)]
        self._count = None
        out = {f"used/{level}": value for level, value in enumerate(used)}
        return out | {f"perplexity/{level}": value for level, value in enumerate(perplexity)}

    def examples(self, batch: Batch) -> dict[str, Audio]:
        """A few crops as they are, and as the codec gives them back with all levels."""
        model = self.players["generator"]
        out = model(batch["wave"][:EXAMPLES, None], None, **self._conditions(batch, EXAMPLES)).wave
        sounds = {}
        for i, (before, after) in enumerate(zip(batch["wave"], out, strict=False)):
            sounds[f"{i}-original"] = Audio(before[None].float().cpu(), self.rate)
            sounds[f"{i}-decoded"] = Audio(after.float().cpu(), self.rate)
        return sounds

    def _forward(self, batch: Batch) -> Output:
        for part in self.frozen:
            part.eval()  # codebooks learn without gradients
        count = len(self.model.quantizer.sizes)
        some = 1 + (batch["chance"][:, 1] ** self.recipe.tilt * count).long().clamp(max=count - 1)
        batch["levels"] = levels = torch.where(batch["chance"][:, 0] < self.recipe.dropout, some, count)
        quantise = batch["step"] >= self.recipe.continuous
        conditions = self._conditions(batch) | self._target(batch["target"])
        output = self.players["generator"](batch["wave"][:, None], levels, quantise=quantise, **conditions)
        if quantise:
            self._tally(output.codes, levels)
        return output

    def _clean(self, batch: Batch) -> dict[str, Tensor]:
        """Squared distance from the vectors of the clean speech, as a share of their own squares."""
        rest = -batch["wave"].shape[1] % self.model.hop
        wave, target = (nn.functional.pad(batch[key], (0, rest))[:, None] for key in ("wave", "target"))
        z = self.model.analyse(wave, denoise=True)[0].float()
        with torch.no_grad():
            aim = self.model.analyse(target)[0].float()
            whole = parallel.mean(aim.square().mean()).clamp(min=1e-5)
        return {"clean": (z - aim).square().mean() / whole}

    def _conditions(self, batch: Batch, rows: int | None = None) -> dict[str, Tensor]:
        return {"denoise": batch["denoise"][:rows, None]} if "denoise" in batch else {}

    def _target(self, wave: Tensor) -> dict[str, Tensor]:
        return {"target": self.teacher(wave)} if self.teacher else {}

    def _piece(self, samples: int) -> slice:
        """The same piece of all rows: where they were cut is random enough."""
        length = min(samples, round(self.recipe.judged * self.rate))
        first = int(torch.randint(samples - length + 1, ()))
        return slice(first, first + length)

    def _weight(self, name: str) -> float:
        return self.recipe.weights.get(name, 1.0)

    def _teacher(self) -> Teacher | None:
        """The recipe's, if the model takes targets from outside. Raises TrainError where they do not fit."""
        name, kind = self.recipe.teacher, type(self.model).__name__
        takes = "target" in inspect.signature(self.model.forward).parameters
        width = getattr(self.model.config, "teacher_width", None) if takes else None
        if not name:
            if width:
                raise TrainError(f"{kind} has a head for a teacher: say teacher=NAME, or model.teacher_width=0")
            return None
        if not takes:
            if hasattr(self.model, "around"):  # it has its teacher inside
                return None
            raise TrainError(f"{kind} learns from no teacher: leave teacher= out")
        teacher = Teacher(name, self.recipe.layer, self.model)
        if width is not None and teacher.width != width:
            what = "units" if teacher.units else "features"
            raise TrainError(f"teacher '{name}' has {teacher.width} {what}: say model.teacher_width={teacher.width}")
        return teacher

    @torch.no_grad()
    def _tally(self, codes: Tensor, levels: Tensor) -> None:
        sizes = self.model.quantizer.sizes
        if self._count is None:
            self._count = torch.zeros(len(sizes), max(sizes), device=codes.device)
        inside = (levels[:, None] > torch.arange(len(sizes), device=codes.device)).float()
        weight = inside[:, :, None].expand(codes.shape).transpose(0, 1).flatten(1)
        self._count.scatter_add_(1, codes.transpose(0, 1).flatten(1), weight)

    @torch.no_grad()
    def _own_losses(self) -> set[str]:
        """The names of those the model makes itself, which only a forward pass tells."""
        training = self.model.training
        wave = torch.zeros(1, 16 * self.model.hop)
        out = self.model.eval()(wave[:, None], **self._target(wave))
        self.model.train(training)
        return set(out.losses)
