"""An hour of audio through pipes: memory and time of `senone encode - -o -` and `senone decode - -o -`.

    python benchmarks/hour.py [--model NAME] [--minutes 60] [--entropy]

Prints one line for each direction: largest resident memory, seconds, and audio per second. Exits with 1 where either
takes 600 MB or more. The sound is noise with a slow envelope, as a WAV stream at 16 kHz on standard input.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from senone.audio import _wav_header

RATE, LIMIT = 16000, 600  # samples a second; MB


def feed(pipe, minutes: float) -> None:
    """Write the recording, second by second."""
    random = np.random.default_rng(0)
    with pipe:
        pipe.write(_wav_header(RATE, 1))
        for second in range(round(60 * minutes)):
            loud = 3000 * (1 + np.sin(second / 3))
            pipe.write((random.standard_normal(RATE) * loud).clip(-32768, 32767).astype("<i2").tobytes())


def measure(words: list[str], source, out: Path) -> tuple[int, float]:
    """Run `senone WORDS`, with `source` (a file, or minutes to feed) on standard input: MB at most, and seconds."""
    began = time.perf_counter()
    with open(out, "wb") as sink:
        stdin = open(source, "rb") if isinstance(source, Path) else subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-m", "senone", *words], stdin=stdin, stdout=sink)
        if process.stdin is not None:
            threading.Thread(target=feed, args=(process.stdin, source), daemon=True).start()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"senone {' '.join(words)} failed")
    return usage.ru_maxrss // 1024, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="An hour of audio through pipes.")
    parser.add_argument("--model", default="spectral-mini")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--entropy", action="store_true")
    options = parser.parse_args()
    model, worst = ["--model", options.model], 0
    with tempfile.TemporaryDirectory() as folder:
        codes, wave = Path(folder, "x.sno"), Path(folder, "x.wav")
        for words, source, out in (
            (["encode", "-", "-o", "-", *model, *["--entropy"] * options.entropy], options.minutes, codes),
            (["decode", "-", "-o", "-", *model], codes, wave),
        ):
            megabytes, seconds = measure(words, source, out)
            speed, size = 60 * options.minutes / seconds, out.stat().st_size
            print(f"{words[0]}: {megabytes} MB, {seconds:.0f} s, {speed:.0f} x real time, {size} bytes", flush=True)
            worst = max(worst, megabytes)
    sys.exit(int(worst >= LIMIT))


if __name__ == "__main__":
    main()
