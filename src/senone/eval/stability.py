"""Do units stay when the sound hardly changes? ("ID stability" of AudioCodecBench; unit edit distance, 2209.15483)

stability(tokenizer, [Audio.read("in.wav")])["shift"]  # token error rate, one a level
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from senone.audio import Audio
from senone.ctc.text import edits
from senone.eval.units import EvalError
from senone.tokenizer import AudioTokenizer

# what hardly changes what is heard: (wave, rate, random numbers) -> wave
Disturb = Callable[[Float[Tensor, "1 samples"], int, torch.Generator], Float[Tensor, "1 samples"]]
DISTURBANCES: dict[str, Disturb] = {
    "shift": lambda wave, rate, rng: wave[:, 1:],  # a sample earlier
    "offset": lambda wave, rate, rng: wave[:, rate // 50 :],  # 20 ms earlier
    "gain": lambda wave, rate, rng: wave / 2,  # -6 dB
    "noise": lambda wave, rate, rng: wave + 0.01 * wave.square().mean().sqrt() * torch.randn(wave.shape, generator=rng),
}  # the noise is white, 40 dB below the speech


def stability(
    tokenizer: AudioTokenizer, recordings: Iterable[Audio], levels: int | None = None, seed: int = 0
) -> dict[str, list[float]]:
    """By the names of DISTURBANCES, for each level: the token error rate, edits (Levenshtein) over tokens, between the
    codes of a recording and those of the disturbed one; 0 is perfectly stable. Raises EvalError without recordings."""
    count = tokenizer.levels_for(levels)
    errors, total = {name: np.zeros(count) for name in DISTURBANCES}, 0
    for audio in recordings:
        audio = audio.mono().resample(tokenizer.sample_rate)
        clean = tokenizer.encode(audio, levels=count).data[0].tolist()
        total += len(clean[0])
        for name, change in DISTURBANCES.items():
            rng = torch.Generator().manual_seed(seed)
            wave = change(audio.wave, audio.rate, rng)
            if not wave.shape[1]:
                raise EvalError(f"a recording of {audio.wave.shape[1]} samples is too short to be disturbed")
            other = tokenizer.encode(Audio(wave, audio.rate), levels=count).data[0].tolist()
            errors[name] += [edits(a, b) for a, b in zip(clean, other, strict=True)]
    if not total:
        raise EvalError("there are no recordings to disturb")
    return {name: (each / total).tolist() for name, each in errors.items()}
