"""How fast crops are made: seconds of sound per second of one core, decoding files and then from memory.

python benchmarks/loader.py ../shared/data/librispeech_train_clean_100_part [../shared/data/noise]
"""

import sys
import time

from senone.data.loader import Crops, Store
from senone.data.manifest import read

RATE, ROWS, STEPS = 16000, 16, 50


def crops(memory: float) -> Crops:
    """Batches of ROWS seconds from the sources of the command line."""
    speech, *noise = (Store(read(source), RATE, memory) for source in sys.argv[1:])
    return Crops(speech, RATE, ROWS, noise=noise[0] if noise else None)


def measure(data: Crops, what: str) -> None:
    """Make STEPS batches and print the rate."""
    start = time.process_time()
    for step in range(STEPS):
        data.batch(step)
    rate = data.seconds * STEPS / (time.process_time() - start)
    print(f"{rate:8.0f} s of sound per CPU second: {what}", flush=True)


if __name__ == "__main__":
    measure(crops(0), "reading a part of a file for every crop")
    kept = crops(2e9)
    measure(kept, "first pass, files decoded whole")
    measure(kept, "the same crops again, from memory")
