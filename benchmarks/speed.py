"""How fast codecs are:  python benchmarks/speed.py [MODEL ...] [--peer] [--hour] [--out DIR]

Three questions; every answer is a ratio within one run, because seconds belong to a machine and what else it does:

- whole (--peer): encode and decode 10 s at 6 kb/s, batch 1: `soundstream-24k` beside transformers' EnCodec 24 kHz with
  as many channels, both with random weights, in turns, in single precision and under bf16 autocast. The nets are not
  equally large, so the multiplications of both are counted too.
- frame: a stream that is fed 20 ms at a time (or what a frame needs): encode and decode, median and p99, in time of
  one core (other work on the machine does not count, but slows the memory).
- duration: 10 s, 1 min, 10 min (and 1 h) through a stream in pieces of 2 s, each in a process of its own: seconds per
  second against the shortest, and the peak of the memory.

MODEL is a name or a directory, or `random`: a SoundStream of the mini size that nobody trained (the default).
--peer needs transformers (benchmarks/README.md).
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import senone
from senone.audio import Audio

Row = dict[str, Any]
PIECE = 2.0  # seconds, as the command line takes them


def model(name: str) -> Any:
    """The tokenizer called `name`, for inference."""
    if name == "random":
        from senone.models.soundstream import Config, SoundStream

        sizes = {"encoder_filters": 8, "decoder_filters": 16, "dim": 128, "levels": 12}
        return SoundStream(Config(sample_rate=16000, **sizes)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the preset says that its weights are random
        return senone.load(name).eval()


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taken in turns after one round that does not count."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return taken


def whole(rounds: int, threads: int, seconds: float = 10.0, kbps: float = 6.0) -> list[Row]:
    """`soundstream-24k` beside EnCodec; ratio: how many times faster ours is."""
    from transformers import EncodecConfig, EncodecModel

    torch.set_num_threads(threads)
    ours, theirs = model("soundstream-24k"), EncodecModel(EncodecConfig()).eval()
    filters = ours.config.encoder_filters, ours.config.decoder_filters, theirs.config.num_filters
    assert len(set(filters)) == 1, f"not the same channels: {filters}"
    wave = 0.1 * torch.randn(1, round(seconds * ours.sample_rate))
    audio, levels = Audio(wave, ours.sample_rate), ours.levels_for(kbps=kbps)

    @torch.no_grad()
    def encodec() -> None:
        out = theirs.encode(wave[None], bandwidth=kbps)
        assert out.audio_codes.shape[2] == levels
        theirs.decode(out.audio_codes, out.audio_scales)

    runs = {"soundstream-24k": lambda: ours.decode(ours.encode(audio, levels=levels)), "encodec": encodec}
    products = {name: multiplications(run) for name, run in runs.items()}
    rows = []
    for precision in ("fp32", "bf16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            taken = in_turns(runs, rounds)
        a, b = taken["soundstream-24k"], taken["encodec"]
        row = {
            "what": f"encode and decode {seconds:g} s, {precision}, {threads} threads",
            "ratio of medians": statistics.median(b) / statistics.median(a),
            "ratio of minimums": min(b) / min(a),
            "times its multiplications": products["soundstream-24k"] / products["encodec"],
        }
        rows.append(row | {"median s": statistics.median(a), "encodec median s": statistics.median(b)})
    return rows


def multiplications(run: Callable[[], object]) -> float:
    """Of convolutions and matrix products; the recurrent layers of EnCodec, which torch does not count, are added."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because it is heavy on memory

    lstm = 0

    def count(module: torch.nn.Module, inputs: tuple, _: object) -> None:
        nonlocal lstm
        if isinstance(module, torch.nn.LSTM):
            frames = inputs[0].shape[0] * inputs[0].shape[1]
            lstm += frames * sum(value.numel() for name, value in module.named_parameters() if "weight" in name)

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        run()
    hook.remove()
    return counter.get_total_flops() / 2 + lstm


def frame(name: str, rounds: int = 1000) -> Row:
    """Encoding and decoding a stream frame by frame on one thread; ratio: how many times faster than it sounds."""
    torch.set_num_threads(1)
    tokenizer = model(name)
    step = tokenizer.hop * max(1, round(0.02 * tokenizer.sample_rate / tokenizer.hop))
    wave, session = 0.1 * torch.randn(1, step * (rounds + 50)), tokenizer.stream()
    taken: list[tuple[float, float]] = []
    for piece in wave.split(step, 1):
        start = time.process_time()
        codes = session.encode(piece)
        middle = time.process_time()
        session.decode(codes)
        taken.append((middle - start, time.process_time() - middle))
    encode, decode, both = [], [], []
    for a, b in taken[50:]:  # the first ones fill caches
        encode.append(1000 * a)
        decode.append(1000 * b)
        both.append(1000 * (a + b))
    length = 1000 * step / tokenizer.sample_rate
    row = {"what": f"{name}: a piece of {length:g} ms, 1 thread", "faster than sound": length / statistics.median(both)}
    for title, times in (("encode", encode), ("decode", decode), ("both", both)):
        row |= {f"{title} p50 ms": statistics.median(times), f"{title} p99 ms": statistics.quantiles(times, n=100)[98]}
    return row


def duration(name: str, lengths: list[float]) -> list[Row]:
    """Ratios are against the first length."""
    rows: list[Row] = []
    for seconds in lengths:
        # a process of its own, so that its peak is its own
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            taken, peak = pool.apply(_through, (name, seconds))
        row = {"what": f"{name}: {seconds:g} s, 1 thread", "s per s": taken / seconds, "peak MB": peak}
        first = rows[0] if rows else row
        ratios = {"of the shortest": row["s per s"] / first["s per s"], "memory of it": peak / first["peak MB"]}
        rows.append({"what": row["what"], **ratios, **row})
    return rows


def _through(name: str, seconds: float) -> tuple[float, float]:
    torch.set_num_threads(1)
    tokenizer = model(name)
    piece = 0.1 * torch.randn(1, round(PIECE * tokenizer.sample_rate))

    def run(count: int) -> None:
        session = tokenizer.stream()
        for i in range(count):
            session.decode(session.encode(piece, last=i == count - 1), last=i == count - 1)

    run(1)
    start = time.process_time()
    run(round(seconds / PIECE))
    return time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: list[Row]) -> str:
    """Markdown."""
    keys = list(rows[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        lines.append("| " + " | ".join(f"{row[key]:.3g}" if key != "what" else row[key] for key in keys) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write speed.json and speed.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["random"], metavar="MODEL")
    parser.add_argument("--peer", action="store_true", help="also soundstream-24k beside EnCodec")
    parser.add_argument("--rounds", type=int, default=9, help="turns of --peer")
    parser.add_argument("--threads", type=int, default=2, help="threads of --peer")
    parser.add_argument("--hour", action="store_true", help="also an hour of sound")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    options = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as on the command line
    torch.manual_seed(0)
    lengths = [10.0, 60.0, 600.0] + [3600.0] * options.hour
    # first, because a new process starts with the peak of the one that started it
    parts = {"duration": [row for name in options.models for row in duration(name, lengths)]}
    parts["frame"] = [frame(name) for name in options.models]
    if options.peer:
        parts["whole"] = whole(options.rounds, options.threads)
    machine = f"{platform.machine()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    text = f"{machine}\n\n" + "\n".join(table(rows) for rows in parts.values())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speed.json").write_text(json.dumps({"machine": machine, **parts}, indent=1))
    (options.out / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
