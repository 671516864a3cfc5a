"""A process of its own for code that may crash or hang: `pesq` takes the interpreter down on some recordings.

run(pesq, ref, deg, seconds=60, mode="wb")

The function is called there by its name, with float32 waves and plain arguments; it gives a number or raises. Requests
and answers are lines of JSON, the waves raw bytes behind theirs. The child serves until its parent ends. This module
imports no torch, so the child starts fast and stays small.
"""

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Literal

import numpy as np

from senone.eval.units import EvalError

RATE = 16000
Status = Literal["ok", "na", "too_short", "no_speech", "error", "crashed"]
Process = subprocess.Popen[bytes]


class Unmeasurable(EvalError):
    """Raised inside a metric that has no value for an item: becomes a Score of that status, with this sentence."""

    def __init__(self, status: Status, sentence: str) -> None:
        super().__init__(sentence)
        self.status: Status = status


class Child:
    """The process; started at the first call, and again after a crash. One call at a time."""

    def __init__(self) -> None:
        self.process: Process | None = None
        self.owner, self.lock = 0, threading.Lock()

    def __call__(self, function: Callable[..., float], *waves: np.ndarray, seconds: float, **arguments: Any) -> float:
        """What the function gives for the waves. Raises Unmeasurable: that which the function raised; "crashed" for a
        child that died; "error" for one that took longer than `seconds`, and was ended."""
        request = {"function": f"{function.__module__}:{function.__name__}", "arguments": arguments}
        request["samples"] = [len(wave) for wave in waves]
        data = b"".join([json.dumps(request).encode(), b"\n", *(wave.astype("<f4").tobytes() for wave in waves)])
        late = threading.Event()
        with self.lock:
            process = self._started()
            timer = threading.Timer(seconds, lambda: (late.set(), process.kill()))
            timer.start()
            try:
                answer = _ask(process, data)
            except BaseException:  # Ctrl-C: the answer that still comes is not that to the next question
                self.stop()
                raise
            finally:
                timer.cancel()
            if answer is None:
                code = process.wait()
                self.stop()
                if late.is_set():
                    raise Unmeasurable("error", f"took longer than {seconds:.0f} s")
                raise Unmeasurable("crashed", f"its process ended with {_named(code)}")
        if "value" not in answer:
            raise Unmeasurable(answer["status"], answer["error"])
        return answer["value"]

    def _started(self) -> Process:
        if self.process is None or self.owner != os.getpid():  # after a fork, this is the parent's
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from senone.eval.child import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # the same senone
            )
            self.owner = os.getpid()
            atexit.register(self.stop)
        return self.process

    def stop(self) -> None:
        """End the process, if it is ours."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            with suppress(BrokenPipeError):  # what was not written yet
                self.process.communicate()
            atexit.unregister(self.stop)
        self.process = None


run = Child()


def _ask(process: Process, data: bytes) -> dict[str, Any] | None:
    """The answer; None from a process that died."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(data)
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        return None
    return json.loads(line) if line.endswith(b"\n") else None


def _named(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve() -> None:
    """What the child does: answer requests on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # C code prints where it likes
    while line := source.readline():
        request = json.loads(line)
        waves = [np.frombuffer(source.read(4 * n), "<f4") for n in request["samples"]]
        answers.write(json.dumps(_answer(request, waves)).encode() + b"\n")
        answers.flush()


def _answer(request: dict[str, Any], waves: list[np.ndarray]) -> dict[str, Any]:
    module, _, name = request["function"].partition(":")
    try:
        return {"value": float(getattr(importlib.import_module(module), name)(*waves, **request["arguments"]))}
    except Unmeasurable as reason:
        return {"status": reason.status, "error": str(reason)}
    except Exception as error:
        first = (str(error) or "no message").splitlines()[0]
        return {"status": "error", "error": f"{type(error).__name__}: {first}"}


def pesq(ref: np.ndarray, deg: np.ndarray, mode: str) -> float:
    """PESQ by the package of that name; mode: "wb" or "nb", both at 16 kHz."""
    import pesq  # pyright: ignore[reportMissingImports]

    try:
        return pesq.pesq(RATE, ref, deg, mode)
    except pesq.BufferTooShortError:
        raise Unmeasurable("too_short", "PESQ needs at least 0.25 s") from None
    except pesq.NoUtterancesError:
        raise Unmeasurable("no_speech", "PESQ finds no speech in it") from None


def visqol(ref: np.ndarray, deg: np.ndarray) -> float:
    """ViSQOL v3 in speech mode, mapped by the deep lattice, by the package visqol-python."""
    try:
        return _visqol().measure_from_arrays(ref.astype(np.float64), deg.astype(np.float64), RATE).moslqo
    except (IndexError, ValueError) as error:  # of a recording without a single patch
        if len(ref) < RATE:
            raise Unmeasurable("too_short", f"ViSQOL finds no patch in {len(ref) / RATE:.2f} s") from None
        raise error


@cache
def _visqol() -> Any:
    from visqol import VisqolApi  # pyright: ignore[reportMissingImports]

    api = VisqolApi()
    api.create(mode="speech", use_lattice_model=True)  # never the polynomial, which is 1 to 2 points off
    return api
