"""How fast semantic codecs are:  python benchmarks/semantic_codecs.py [--only NAME] [--seconds N] [--rounds N]

Codecs of the official size with random weights, the same ones in the official package and in ours, in turns, so that
every answer is a ratio within one run; codes and sound are compared before anything is timed. At least 1.2 is wanted.

- speechtokenizer: encode to 8 levels and decode, beside the package `speechtokenizer` 1.0.1
  (`pip install --no-deps speechtokenizer==1.0.1 einops`).

- xcodec2: encode, features and all, and decode, beside transformers' port, which opens what ours writes for it.

Times are wall seconds and, since a machine may do other work, seconds of process time.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import in_turns
from torch.nn import functional as F

import senone
from senone.audio import Audio

Runs = dict[str, Callable[[], Any]]


def speechtokenizer(seconds: float) -> Runs:
    """`encode` and `decode` of both, "NAME, VERB"."""
    spec = importlib.util.find_spec("speechtokenizer")
    if spec is None:
        raise SystemExit("needs pip install --no-deps speechtokenizer==1.0.1 einops")
    # without the package's own __init__, which wants torchaudio for its trainer
    sys.modules["speechtokenizer"] = importlib.util.module_from_spec(spec)
    settings = {
        "sample_rate": 16000, "n_filters": 64, "strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768,
        "lstm_layers": 2, "bidirectional": True, "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1,
        "activation": "ELU", "n_q": 8, "codebook_size": 1024,
    }  # fmt: skip
    wave = 0.1 * torch.randn(1, 1, round(16000 * seconds), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from speechtokenizer.model import SpeechTokenizer

        theirs: Any = SpeechTokenizer(settings).eval()
    with torch.no_grad():
        spread = theirs.encoder(wave[:, :, :16000]).std()
        for layer in theirs.quantizer.vq.layers:
            layer._codebook.embed.normal_().mul_(spread)
            layer._codebook.inited.fill_(1)
            spread = 0.5 * spread
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder, "SpeechTokenizer.pt"))
        Path(folder, "config.json").write_text(json.dumps(settings))
        ours = senone.load(folder)
    codes = ours.encode(Audio(wave[0], 16000))
    return {
        "ours, encode": lambda: ours.encode(Audio(wave[0], 16000)).data.transpose(0, 1),
        "official, encode": lambda: theirs.encode(wave),
        "ours, decode": lambda: ours.decode(codes)[0].wave[None],
        "official, decode": lambda: theirs.decode(codes.data.transpose(0, 1))[:, :, : wave.shape[2]],
    }


def xcodec2(seconds: float) -> Runs:
    """The same of X-codec2; the encoder's digits are spread, or all codes would be one. Of whole hops the port makes
    one frame more than they fill, so the sound ends inside a hop."""
    import transformers

    wave = 0.1 * torch.randn(1, round(16000 * seconds) - 1, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    ours: Any = senone.load("xcodec2").eval()
    digits = ours.quantizer.enter(ours.vectors(F.pad(wave, (0, 1))[None]).transpose(1, 2))[0]
    ours.quantizer.enter.weight.div_(digits.std(0)[:, None])
    ours.quantizer.enter.bias.copy_((ours.quantizer.enter.bias - digits.mean(0)) / digits.std(0))
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder, format="transformers")
        theirs: Any = transformers.Xcodec2Model.from_pretrained(folder).eval()
    front = transformers.SeamlessM4TFeatureExtractor()
    codes = ours.encode(Audio(wave, 16000))

    def encode() -> Any:
        whole = F.pad(wave, (0, 1))
        inputs = front(F.pad(whole[0], (160, 160)).numpy(), sampling_rate=16000, return_tensors="pt")
        return theirs.encode(whole[:, None], inputs["input_features"]).audio_codes

    return {
        "ours, encode": lambda: ours.encode(Audio(wave, 16000)).data,
        "transformers, encode": encode,
        "ours, decode": lambda: ours.decode(codes)[0].wave[None],
        "transformers, decode": lambda: theirs.decode(codes.data).audio_values[:, :, : wave.shape[1]],
    }


CODECS: dict[str, Callable[..., Runs]] = {"speechtokenizer": speechtokenizer, "xcodec2": xcodec2}


@torch.no_grad()
def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CODECS))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for semantic_codecs.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, {args.seconds:g} s of sound")
    found: dict[str, Any] = {}
    for codec in [args.only] if args.only else CODECS:
        runs = CODECS[codec](args.seconds)
        for verb in ("encode", "decode"):
            mine, others = runs[f"ours, {verb}"](), [name for name in runs if name.endswith(verb)][1:]
            for name in others:
                apart = float((mine - runs[name]()).abs().max())
                print(f"{codec}: {verb} differs from {name.split(',')[0]}'s by {apart:.1e}")
                assert apart < 1e-4, "not the same outputs"
        took = in_turns(runs, args.rounds)
        for name, (wall, process) in took.items():
            print(f"{codec}: {name:24} {wall:7.3f} s wall {process:7.3f} s process")
        ratios = {}
        for name in runs:
            who, verb = name.split(", ")
            if who != "ours":
                ratios[name] = [round(took[name][k] / took[f"ours, {verb}"][k], 3) for k in (0, 1)]
                print(
                    f"{codec}: {name:24} takes {ratios[name][0]:.2f} times ours, {ratios[name][1]:.2f} in process time"
                )
        found[codec] = {"seconds": took, "ratios": ratios}
    print("load average", *(f"{load:.1f}" for load in os.getloadavg()))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "semantic_codecs.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
