"""Opinion scores, 1 to 5, that nets estimate from the decoded wave alone: UTMOS (Table 1), DistillMOS, DNSMOS.

They do not hear the original, so what was never there may score well: none of them is a measure of a codec by itself.
"""

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from senone import features
from senone.eval.metrics import RATE, Column, Item, Metric, Plain, Unmeasurable, folder
from senone.eval.neural import fit, read, remembered
from senone.interop.upstream import renamed
from senone.nn.encoder import EncoderConfig, SpeechEncoder

UTMOS, DISTILLMOS = "utmos22_strong_step7459_v1.pt", "distillmos.pt"
WINDOW = round(9.01 * RATE)  # samples that DNSMOS hears at once
# DNSMOS P.835: what its outputs mean on the scale of listeners, highest power first
SCALES = {
    "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos": (-0.06766283, 1.11546468, 0.04602535),
}
DNSMOS = {
    "dnsmos": "DNSMOS OVRL",
    "dnsmos_sig": "DNSMOS SIG",
    "dnsmos_bak": "DNSMOS BAK",
    "dnsmos_p808": "DNSMOS P.808",
}


def utmos() -> Metric:
    """UTMOS22, the strong learner (Saeki et al. 2022), as SpeechMOS gives it; the originals of test-clean have 4.09."""
    column = Column("utmos", "UTMOS", "higher", heavy=True, licence="MIT", source=f"tarepan/SpeechMOS: {UTMOS}")
    return Plain(column, lambda item: strong(folder())(item.deg), files=(UTMOS,))


def distillmos() -> Metric:
    """DistillMOS (Stahl and Gamper 2025), distilled from XLS-R: windows of 7.68 s, averaged."""
    source = "distillmos on PyPI: weights/distill_mos_v7.pt"
    column = Column("distillmos", "DistillMOS", "higher", heavy=True, licence="MIT", source=source)
    return Plain(column, lambda item: distilled(folder())(item.deg), files=(DISTILLMOS,))


def _dnsmos(name: str) -> Metric:
    """DNSMOS P.835 or P.808 (Reddy et al. 2021, 2022), windows of 9 s every second, averaged; shorter is repeated."""
    column = Column(name, DNSMOS[name], "higher", heavy=True, licence="MIT", source="speechmos on PyPI")

    def score(item: Item) -> float:
        if not item.deg.any():
            raise Unmeasurable("no_speech", "the decoded wave is silent")
        return microsoft()(item.deg)[name]

    return Plain(column, score, packages=("speechmos", "onnxruntime"))


dnsmos, dnsmos_sig, dnsmos_bak, dnsmos_p808 = (partial(_dnsmos, name) for name in DNSMOS)


class Strong(nn.Module):
    """UTMOS22's strong learner: wav2vec 2.0, a listener and a domain that are always the same, and a BLSTM."""

    def __init__(self, config: EncoderConfig = EncoderConfig(), state: int = 512, hidden: int = 2048) -> None:
        super().__init__()
        self.wav2vec2 = SpeechEncoder(config)
        self.domain_emb, self.judge_emb = (nn.Parameter(torch.zeros(1, 128)) for _ in range(2))
        self.blstm = nn.LSTM(config.width + 256, state, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(nn.Linear(2 * state, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, wave: Float[Tensor, "1 samples"]) -> Float[Tensor, "1"]:
        x = self.wav2vec2.features(wave)
        who = torch.cat([self.domain_emb, self.judge_emb], 1)[:, None].expand(-1, x.shape[1], -1)
        return self.projection(self.blstm(torch.cat([x, who], 2))[0]).mean((1, 2)) * 2 + 3


def ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """UTMOS's weights, whose encoder has fairseq's names, under our names."""
    mark = "wav2vec2."
    body = renamed({k.removeprefix(mark): v for k, v in weights.items() if k.startswith(mark)})
    rest = {k: v for k, v in weights.items() if not k.startswith(mark)}
    return {f"{mark}{name}": value for name, value in body.items()} | rest


@cache
def strong(folder: Path) -> Callable[[np.ndarray], float]:
    """The score of a wave by `folder`/utmos22_strong_step7459_v1.pt. Raises HubError naming a key amiss."""
    net = fit(Strong(), ours(read(folder / UTMOS, "")), folder / UTMOS)
    return _scored(net)


class Shape(nn.Module):
    """DistillMOS's convolutions over a compressed complex spectrum: (window samples) to (window frame 1024)."""

    def __init__(self) -> None:
        super().__init__()
        sizes, layers = (2, 64, 64, 128, 256, 256, 256), []
        for n, (into, out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            stride = (1 if n == 0 else 2, 2 if n == 5 else 1)  # over frequency, over time
            layers += [nn.Conv2d(into, out, 3, stride, (0, 1)), nn.LeakyReLU(0.1)]
        self.cnn = nn.Sequential(*layers)

    def forward(self, wave: Float[Tensor, "window samples"]) -> Float[Tensor, "window frame channel"]:
        padded, window = F.pad(wave, (80, 80), mode="reflect"), torch.hann_window(320)
        x = torch.view_as_real(torch.stft(padded, 320, 160, window=window, center=False, return_complex=True))
        size = x.square().sum(3, keepdim=True).sqrt().clamp(min=1e-12)
        return self.cnn((size**0.3 * x / size).permute(0, 3, 1, 2)).flatten(1, 2).transpose(1, 2)


class Sequence(nn.Module):
    """A transformer over 384 frames, a position added to each."""

    def __init__(self, into: int, width: int) -> None:
        super().__init__()
        self.norm, self.linear_proj = nn.BatchNorm1d(into), nn.Linear(into, width)
        self.position_encoding = nn.Module()
        self.position_encoding.register_buffer("pe", torch.zeros(1, 384, width))
        layer = nn.TransformerEncoderLayer(width, 8, 2 * width, dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, 7, enable_nested_tensor=False)

    def forward(self, x: Float[Tensor, "window frame channel"]) -> Float[Tensor, "window frame width"]:
        x = self.linear_proj(self.norm(x.transpose(1, 2)).transpose(1, 2))
        position: Any = self.position_encoding.pe
        return self.transformer_encoder(x + position)


class Pooling(nn.Module):
    """One number of all frames, by attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, 1)
        self.linear3 = nn.Linear(width, 1)

    def forward(self, x: Float[Tensor, "window frame width"]) -> Float[Tensor, "window"]:
        share = self.linear2(F.relu(self.linear1(x))).softmax(1)
        return self.linear3((share * x).sum(1))[:, 0]


class Distilled(nn.Module):
    """DistillMOS, variant 7."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = Shape()
        self.transformer_pool_attn = nn.ModuleDict(
            {
                "norm_input": nn.BatchNorm1d(1024),
                "transformer": Sequence(1024, 200),
                "norm_trans": nn.BatchNorm1d(200),
                "pool": Pooling(200),
            }
        )

    def forward(self, wave: Float[Tensor, "1 samples"]) -> Float[Tensor, ""]:
        size = 384 * 320
        rest = max(0, wave.shape[1] - size)
        starts = [int(share * rest) for share in np.linspace(0, 1, -(-rest // RATE) + 1)]
        windows = torch.cat([F.pad(wave, (0, size - wave.shape[1] + rest))[:, at : at + size] for at in starts])
        x = self.cnn(windows / (windows.abs().amax(1, keepdim=True) + 1e-8))
        for name in ("norm_input", "transformer", "norm_trans"):
            part = self.transformer_pool_attn[name]
            x = part(x) if name == "transformer" else part(x.transpose(1, 2)).transpose(1, 2)
        return 1 + 4 * self.transformer_pool_attn["pool"](x).sigmoid().mean()


@cache
def distilled(folder: Path) -> Callable[[np.ndarray], float]:
    """The score of a wave by `folder`/distillmos.pt. Raises HubError naming a key amiss."""
    return _scored(fit(Distilled(), read(folder / DISTILLMOS, "model"), folder / DISTILLMOS))


def _scored(net: nn.Module) -> Callable[[np.ndarray], float]:
    @torch.no_grad()
    def score(wave: np.ndarray) -> float:
        return float(net(torch.from_numpy(wave)[None]))

    return remembered(score)


@cache
def microsoft() -> Callable[[np.ndarray], dict[str, float]]:
    """All scores of DNSMOS, by column, of a wave. The package is looked up for its nets alone, never imported: it
    would want librosa, for the mel spectrum that we have."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    spec = importlib.util.find_spec("speechmos")
    assert spec is not None and spec.submodule_search_locations
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    nets = Path(spec.submodule_search_locations[0], "dnsmos_models")
    quality, p808 = (
        onnxruntime.InferenceSession(str(nets / name), options) for name in ("sig_bak_ovr.onnx", "model_v8.onnx")
    )

    def run(net: Any, x: np.ndarray) -> np.ndarray:
        return np.asarray(net.run(None, {"input_1": x[None].astype(np.float32)})[0])[0]

    def score(wave: np.ndarray) -> dict[str, float]:
        wave = np.clip(wave, -1, 1)
        while len(wave) < WINDOW:
            wave = np.concatenate([wave, wave])
        found = []
        for second in range(int(len(wave) // RATE - 9.01) + 1):
            window = wave[second * RATE :][:WINDOW]
            if len(window) == WINDOW:
                raw = run(quality, window)
                values = [np.polyval(scale, x) for scale, x in zip(SCALES.values(), raw, strict=True)]
                found.append([*values, *run(p808, _decibels(window[:-160]))])
        means = np.mean(found, axis=0)
        return dict(zip([*SCALES, "dnsmos_p808"], map(float, means), strict=True))

    return remembered(score)


def _decibels(wave: np.ndarray) -> Float[np.ndarray, "frame mel"]:
    """120 mels, in decibels below the loudest, 0 at 40 below and 1 at the loudest; at most 80 below."""
    window, padded = torch.hann_window(321), torch.from_numpy(wave)[None]
    spectrum = torch.stft(padded, 321, 160, window=window, center=True, pad_mode="constant", return_complex=True)
    decibels = 10 * (features.mel_filters(RATE, 321, 120) @ spectrum.abs().square()).clamp(min=1e-10).log10()
    decibels = decibels - decibels.max()
    return ((decibels.clamp(min=-80) + 40) / 40)[0].T.numpy()
