"""Where a run can be watched: log.jsonl, TensorBoard, sound files, and a line on the terminal."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from senone.audio import Audio


class Log:
    """Writes below `out` what happens from `step` on; what an earlier run wrote beyond that step is dropped."""

    def __init__(self, out: Path, step: int, steps: int) -> None:
        self.path, self.out, self.steps = out / "log.jsonl", out, steps
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
            part = self.path.with_name("log.jsonl.part")
            part.write_text("".join(f"{line}\n" for line in lines))
            os.replace(part, self.path)
        self.board = _board(out / "tensorboard", step)
        self.console = Console(file=sys.stderr)
        self.bar = None
        if self.console.is_terminal:
            columns = BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=steps, completed=step)
            self.bar.start()
        if self.board is None:
            self.say("no TensorBoard log: pip install tensorboard")

    def say(self, sentence: str) -> None:
        """One line for whoever watches."""
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def move(self, step: int) -> None:
        """Advance the bar."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def numbers(self, step: int, values: dict[str, Any]) -> None:
        """Losses and whatever else belongs to this step."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        plain = {key: value for key, value in values.items() if isinstance(value, float | int)}
        text = "  ".join(f"{key} {value:.4g}" for key, value in plain.items() if "/" not in key)
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        else:
            self.say(f"{step}/{self.steps}  {text}")
        if self.board:
            for key, value in plain.items():
                self.board.add_scalar(key, value, step)

    def sounds(self, step: int, sounds: dict[str, Audio]) -> None:
        """Examples, as files (the newest) and on the board (all)."""
        (self.out / "examples").mkdir(exist_ok=True)
        for name, sound in sounds.items():
            sound.save(self.out / "examples" / f"{name}.wav")
            if self.board:
                self.board.add_audio(name, sound.wave[:1].clamp(-1, 1), step, sound.rate)

    def close(self) -> None:
        """Flush everything."""
        if self.bar:
            self.bar.stop()
        if self.board:
            self.board.close()


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line that a kill cut short
        return sys.maxsize


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step or None)
