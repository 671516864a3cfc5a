"""A function over many tasks, in processes that may die.

A worker that is killed by its task (a segmentation fault in somebody's decoder) costs that task alone: it comes back as
`Crashed`, another worker takes the place. Weights that the function keeps are loaded once in each process.
`over_ray` runs the same function on a cluster.
"""

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from senone.errors import SenoneError
from senone.eval.units import EvalError

Task = TypeVar("Task")
Done = TypeVar("Done")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Crashed:
    """The process died. error: one sentence."""

    error: str


class Worker:
    """A process that serves one task after another."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context, self.ready = multiprocessing.get_context("spawn"), False
        self.pipe, theirs = context.Pipe()
        # not a daemon: metrics have children of their own; it ends when the pipe does
        self.process = context.Process(target=_serve, args=(function, theirs))
        with _environment(ONE_THREAD):
            self.process.start()
        theirs.close()

    def greet(self) -> None:
        """Hear that it has started. Raises EvalError if it could not, which is no fault of its task."""
        if isinstance(found := self.result(), Crashed):
            hint = 'a script of your own needs `if __name__ == "__main__":`'
            raise EvalError(f"no process can be started: {found.error}; {hint}")
        self.ready = True

    def result(self) -> Any:
        """What the task that was sent came to; the exception that escaped from it is raised here."""
        try:
            ok, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            return Crashed(f"the process was ended {how}")
        if not ok:
            raise value
        return value

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def over_processes(
    function: Callable[[Task], Done], tasks: Iterable[Task], jobs: int
) -> Generator[tuple[Task, Done | Crashed], None, None]:
    """`function(task)` for every task, as they come, by `jobs` processes of one thread each; 0: by this process."""
    waiting = deque(tasks)
    if jobs < 1:
        for task in waiting:
            yield task, function(task)
        return
    busy: dict[Connection, tuple[Worker, Task]] = {}

    def give(worker: Worker) -> None:
        if not waiting:
            worker.end()
            return
        task = waiting.popleft()
        worker.pipe.send(task)
        busy[worker.pipe] = worker, task

    try:
        for _ in range(min(jobs, len(waiting))):
            give(Worker(function))
        while busy:
            for pipe in wait(list(busy)):
                worker, task = busy[pipe]  # type: ignore[index]
                if not worker.ready:
                    worker.greet()
                    continue
                del busy[worker.pipe]
                try:
                    found = worker.result()
                except BaseException:
                    worker.end()
                    raise
                if isinstance(found, Crashed):
                    worker.end()
                    worker = Worker(function) if waiting else None
                if worker is not None:
                    give(worker)
                yield task, found
    finally:
        for worker, _ in busy.values():
            worker.end()


def over_ray(
    function: Callable[[Task], Done], tasks: Iterable[Task], address: str
) -> Generator[tuple[Task, Done | Crashed], None, None]:
    """The same on a Ray cluster ("local" starts one here), whose machines share the folders that tasks name."""
    try:
        import ray  # type: ignore
    except ImportError:
        raise EvalError("ray is not installed: pip install ray") from None
    here = {"include_dashboard": False} if address == "local" else {"address": address}
    ray.init(**here, runtime_env={"env_vars": ONE_THREAD}, log_to_driver=False)
    try:
        remote = ray.remote(max_retries=0)(function)
        coming = {remote.remote(task): task for task in tasks}
        while coming:
            (ready,), _ = ray.wait(list(coming), num_returns=1)
            task = coming.pop(ready)
            try:
                yield task, ray.get(ready)
            except ray.exceptions.WorkerCrashedError as error:
                yield task, Crashed(str(error).splitlines()[0])
    finally:
        ray.shutdown()


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    pipe.send((True, None))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(task)
        except SenoneError as error:
            answer = False, EvalError(str(error))
        except Exception:
            answer = False, RuntimeError(traceback.format_exc())  # a fault of ours, to be seen as it is
        pipe.send(answer)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set for children that start inside."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
