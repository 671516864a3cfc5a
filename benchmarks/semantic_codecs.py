"""How fast semantic codecs are:  python benchmarks/semantic_codecs.py [--only NAME] [--seconds N] [--rounds N]

Codecs of the official size with random weights, the same file opened by the official package and by ours, in turns, so
that every answer is a ratio within one run; codes and sound are compared before anything is timed. At least 1.2 is
wanted, in no more memory: the most that a process holds while it encodes and decodes, model and all (of Linux).

- speechtokenizer: encode to 8 levels and decode, beside the package `speechtokenizer` 1.0.1
  (`pip install --no-deps speechtokenizer==1.0.1 einops`).

- xcodec2: encode, features and all, and decode, beside transformers' port, which opens what ours writes for it.

Times are wall seconds and, since a machine may do other work, seconds of process time.
"""

import argparse
import importlib.util
import json
import multiprocessing
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
from torch import Tensor
from torch.nn import functional as F

import senone
from senone.audio import Audio
from senone.codes import Codes

Verbs = tuple[Callable[[], Tensor], Callable[[], Tensor]]  # encode, decode
PEERS = {"speechtokenizer": "official", "xcodec2": "transformers"}
SETTINGS = {
    "sample_rate": 16000, "n_filters": 64, "strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768,
    "lstm_layers": 2, "bidirectional": True, "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1,
    "activation": "ELU", "n_q": 8, "codebook_size": 1024,
}  # fmt: skip


def sound(seconds: float) -> Tensor:
    """(1 samples). It ends inside a hop: of whole hops the port of X-codec2 makes one frame more than they fill."""
    return 0.1 * torch.randn(1, round(16000 * seconds) - 1, generator=torch.Generator().manual_seed(0))


def package() -> Any:
    """The official SpeechTokenizer, without the package's own __init__, which wants torchaudio for its trainer."""
    spec = importlib.util.find_spec("speechtokenizer")
    if spec is None:
        raise SystemExit("needs pip install --no-deps speechtokenizer==1.0.1 einops")
    sys.modules["speechtokenizer"] = importlib.util.module_from_spec(spec)
    warnings.simplefilter("ignore")
    from speechtokenizer.model import SpeechTokenizer

    return SpeechTokenizer


@torch.no_grad()
def write(codec: str, folder: str) -> None:
    """A checkpoint with random weights whose codes differ from frame to frame."""
    torch.manual_seed(0)
    if codec == "speechtokenizer":
        theirs = package()(SETTINGS).eval()
        spread = theirs.encoder(sound(1)[None]).std()
        for layer in theirs.quantizer.vq.layers:
            layer._codebook.embed.normal_().mul_(spread)
            layer._codebook.inited.fill_(1)
            spread = 0.5 * spread
        torch.save(theirs.state_dict(), Path(folder, "SpeechTokenizer.pt"))
        Path(folder, "config.json").write_text(json.dumps(SETTINGS))
        return
    ours: Any = senone.load("xcodec2").eval()
    digits = ours.quantizer.enter(ours.vectors(sound(5)[None]).transpose(1, 2))[0]
    ours.quantizer.enter.weight.div_(digits.std(0)[:, None])
    ours.quantizer.enter.bias.copy_((ours.quantizer.enter.bias - digits.mean(0)) / digits.std(0))
    ours.save_pretrained(folder, format="transformers")


def opened(codec: str, who: str, folder: str, seconds: float) -> Verbs:
    """The verbs of one of the two: codes (1 level frame), and sound (1 1 samples) of codes that are there."""
    wave = sound(seconds)
    if who == "ours":
        ours = senone.load(folder).eval()

        def encode() -> Codes:
            return ours.encode(Audio(wave, 16000))

        codes = encode()
        return lambda: encode().data, lambda: ours.decode(codes)[0].wave[None]
    if codec == "speechtokenizer":
        theirs = package().load_from_checkpoint(f"{folder}/config.json", f"{folder}/SpeechTokenizer.pt").eval()
        given = theirs.encode(wave[None])
        return lambda: theirs.encode(wave[None]).transpose(0, 1), lambda: theirs.decode(given)[:, :, : wave.shape[1]]
    import transformers

    theirs = transformers.Xcodec2Model.from_pretrained(folder).eval()
    front = transformers.SeamlessM4TFeatureExtractor()

    def port() -> Tensor:
        whole = F.pad(wave, (0, 1))
        inputs = front(F.pad(whole[0], (160, 160)).numpy(), sampling_rate=16000, return_tensors="pt")
        return theirs.encode(whole[:, None], inputs["input_features"]).audio_codes

    given = port()
    return port, lambda: theirs.decode(given).audio_values[:, :, : wave.shape[1]]


@torch.no_grad()
def peak(codec: str, who: str, folder: str, seconds: float, threads: int) -> float:
    """MB."""
    torch.set_num_threads(threads)
    verbs = opened(codec, who, folder, seconds)
    for verb in verbs:  # once before it counts: what they need of a mapped file is in memory then, and loading is over
        verb()
    Path("/proc/self/clear_refs").write_text("5")
    for verb in verbs:
        verb()
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def apart(function: Callable[..., Any], *given: Any) -> Any:
    """What the function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


@torch.no_grad()
def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PEERS))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for semantic_codecs.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, {args.seconds:g} s of sound")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as top:
        folders = {codec: Path(top, codec) for codec in ([args.only] if args.only else PEERS)}
        memory: dict[str, dict[str, float]] = {}
        for codec, folder in folders.items():
            folder.mkdir()
            apart(write, codec, str(folder))
            both = ("ours", PEERS[codec])
            memory[codec] = {who: apart(peak, codec, who, str(folder), args.seconds, args.threads) for who in both}
        for codec, folder in folders.items():
            peer = PEERS[codec]
            mine, other = (opened(codec, who, str(folder), args.seconds) for who in ("ours", peer))
            took, ratios = {}, {}
            for i, verb in enumerate(("encode", "decode")):
                off = float((mine[i]() - other[i]()).abs().max())
                print(f"{codec}: {verb} differs from {peer}'s by {off:.1e}")
                assert off < 1e-4, "not the same outputs"
                took[verb] = in_turns({"ours": mine[i], peer: other[i]}, args.rounds)
                ratios[verb] = [round(took[verb][peer][k] / took[verb]["ours"][k], 3) for k in (0, 1)]
                for who, (wall, process) in took[verb].items():
                    print(f"{codec}: {who:12} {verb} {wall:7.3f} s wall {process:7.3f} s process")
                print(f"{codec}: {peer} takes {ratios[verb][0]:.2f} times ours, {ratios[verb][1]:.2f} in process time")
            print(f"{codec}: peak", ", ".join(f"{who} {size:,.0f} MB" for who, size in memory[codec].items()))
            found[codec] = {"seconds": took, "ratios": ratios, "memory": memory[codec]}
    print("load average", *(f"{load:.1f}" for load in os.getloadavg()))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "semantic_codecs.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
