"""The bench: every utterance through every system, every metric on what comes out, each score kept as one row.

load -> mono -> code -> 16 kHz, 16 bit -> cut to the shorter -> delay -> metrics. Rows are kept by the content of the
utterance, the fingerprint of the system and that of the metric, so whatever was measured is not measured again: a run
that was killed goes on, and one with more systems or metrics does only these.
"""

import resource
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from senone.audio import Audio
from senone.errors import SenoneError
from senone.eval import summary
from senone.eval.align import ALIGNMENTS, Alignment, aligned, delay
from senone.eval.card import card
from senone.eval.corpus import Corpus, Utterance
from senone.eval.metrics import METRICS, PRESETS, RATE, Item, Metric, measure
from senone.eval.pool import Crashed, over_processes, over_ray
from senone.eval.rows import (
    DELAY,
    KBPS,
    NO_PHASE,
    ORIGINAL,
    Book,
    Row,
    Run,
    audio_file,
    read_json,
    replacing,
    slug,
    write_json,
)
from senone.eval.systems import Coded, System, system
from senone.eval.units import EvalError
from senone.hub import unknown

OWN = {KBPS: "1", DELAY: "1"}
LOST = RATE // 4  # samples that a decoded wave may lack
TIMES, PROBE = 5, 10.0  # codings whose median is the speed, and the seconds that the recording should have


@dataclass(frozen=True)
class Plan:
    """What is measured.

    heavy: metrics that are heavy hear the first so many utterances only (None: all). seed: of the bootstrap. against:
    the system that all others are compared with (None: all with all).
    """

    systems: tuple[str, ...]
    metrics: tuple[str, ...]
    align: Alignment = "known"
    heavy: int | None = None
    seed: int = 0
    against: str | None = None


class Failed(Exception):
    """Somebody's codec or file has no answer, which costs this clip and not the run; the message says why."""


@dataclass(frozen=True)
class Task:
    """Work for one process: one utterance, systems that share an encoding, and for each the metrics to do."""

    folder: Path
    utterance: Utterance
    todo: tuple[tuple[str, tuple[str, ...]], ...]
    align: Alignment


def choose(preset: str, changes: str | None = None) -> tuple[str, ...]:
    """The metrics of a preset, or those that are named; `+x` and `-y` add to the preset and take away from it.

    Raises HubError or EvalError naming what is unknown, or a list that leaves nothing.
    """
    if preset not in PRESETS:
        raise EvalError(unknown("preset", preset, [*PRESETS]))
    words = [word.strip() for word in (changes or "").split(",") if word.strip()]
    chosen = list(PRESETS[preset]) if all(word[0] in "+-" for word in words) else []
    for word in words:
        name = word.lstrip("+-")
        METRICS.get(name)
        chosen = [other for other in chosen if other != name] + ([name] if word[0] != "-" else [])
    if not chosen:
        raise EvalError(f"'{changes}' leaves no metric to measure")
    return tuple(chosen)


def alignment(named: str | None, preset: str) -> Alignment:
    """The one that is named, or the preset's: Table 1 was measured without. Raises EvalError for an unknown one."""
    if named is None:
        return "none" if preset == "table1" else "known"
    for known in ALIGNMENTS:
        if named == known:
            return known
    raise EvalError(unknown("alignment", named, [*ALIGNMENTS]))


@cache
def metric(name: str) -> Metric:
    """The metric of that name, made once in a process. Raises HubError for an unknown one."""
    return METRICS.get(name)()


def fingerprint(name: str, align: Alignment) -> str:
    """Of a metric as this bench computes it."""
    return OWN[name] if name in OWN else f"{metric(name).fingerprint} align={align}"


def work(task: Task) -> list[Row]:
    """Do one task: decode where that was not done before, and measure. The same function in a process and under Ray."""
    return [row for name, metrics in task.todo for row in _scores(task, system(name), metrics)]


def _scores(task: Task, codec: System, metrics: tuple[str, ...]) -> Iterator[Row]:
    utterance = task.utterance

    def row(name: str, value: float | None, weight: float = 1.0, status: str = "ok", error: str = "") -> Row:
        about = utterance.id, utterance.speaker, utterance.seconds, codec.name, codec.fingerprint
        return Row(*about, name, fingerprint(name, task.align), value, weight, status, error, utterance.content)

    def none(status: str, error: str) -> Iterator[Row]:
        return (row(name, None, status=status, error=error) for name in metrics)

    if codec.missing:
        yield from none("na", codec.missing)
        return
    try:
        ref, deg, bits = _pair(task, codec, fresh=KBPS in metrics)
    except Failed as error:
        yield from none("error", str(error))
        return
    if KBPS in metrics and bits is not None:
        yield row(KBPS, bits / 1000, utterance.seconds)
    elif KBPS in metrics:
        yield row(KBPS, None, status="na", error="bits are not known")
    metrics = tuple(name for name in metrics if name != KBPS)
    if deg is None:
        yield from none("na", "it has no decoder")
        return
    late = delay(ref, deg, codec.waveform)
    shift = {"none": 0, "known": codec.delay, "estimate": late or 0}[task.align]
    if len(deg) - shift < len(ref) - LOST:
        yield from none("error", f"{len(deg)} samples were decoded of {len(ref)}")
        return
    item = Item(*aligned(ref, deg, shift), utterance.text)
    for name in metrics:
        if name == DELAY:
            yield row(name, late) if late is not None else row(name, None, status="na", error="silence")
        elif metric(name).column.waveform and not codec.waveform:
            yield row(name, None, status="na", error=NO_PHASE)
        else:
            score = measure(metric(name), item)
            yield row(name, score.value, score.weight, score.status, score.error)


def _pair(task: Task, codec: System, fresh: bool) -> tuple[np.ndarray, np.ndarray | None, int | None]:
    """The reference and the decoded wave as they are in the run's folder, and the bits, if it was coded just now."""
    utterance, folder = task.utterance, task.folder
    original, file = (audio_file(folder, name, utterance.id) for name in (ORIGINAL, codec.name))
    if not _holds(original, utterance.content):
        _keep(original, _read(utterance).resample(RATE).wave[0].numpy(), utterance.content)
    if not fresh and _holds(file, _mark(codec, utterance)):
        return _heard(original), _heard(file), None
    coded = _code(codec, utterance)
    if coded.codes is not None:
        _keep_codes(_codes_folder(folder, codec.name) / f"{slug(utterance.id)}.npy", coded.codes)
    if coded.wave is None:
        return _heard(original), None, coded.bits
    _keep(file, coded.wave, _mark(codec, utterance))
    return _heard(original), _heard(file), coded.bits


def _read(utterance: Utterance) -> Audio:
    try:
        return utterance.read()
    except SenoneError as error:
        raise Failed(str(error)) from None


def _code(codec: System, utterance: Utterance) -> Coded:
    audio = _read(utterance)
    try:
        coded = codec.code(audio.wave[0].numpy(), audio.rate, utterance.id)
    except SenoneError as error:
        raise Failed(str(error)) from None
    except Exception as error:
        raise Failed(f"{type(error).__name__}: {error}".splitlines()[0]) from None
    if coded.wave is not None and not np.isfinite(coded.wave).all():
        raise Failed("the decoded wave holds NaN or infinite samples")
    return coded


def _mark(codec: System, utterance: Utterance) -> str:
    return f"{utterance.content} {codec.fingerprint}"


def _keep(path: Path, wave: np.ndarray, mark: str) -> None:
    """16-bit FLAC whose comment says what it was made of."""
    pcm = np.round(wave.astype(np.float64).clip(-1, 1 - 2**-15) * 32768).astype(np.int16)
    with replacing(path) as part, soundfile.SoundFile(part, "w", RATE, 1, "PCM_16", format="FLAC") as file:
        file.comment = mark
        file.write(pcm)


def _holds(path: Path, mark: str) -> bool:
    try:
        with soundfile.SoundFile(path) as file:
            return file.comment == mark
    except (OSError, soundfile.SoundFileError):
        return False


def _heard(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def _keep_codes(path: Path, codes: np.ndarray) -> None:
    with replacing(path) as part:
        np.save(part, codes.astype(np.int16 if codes.max(initial=0) < 2**15 else np.int32))


def _codes_folder(folder: Path, name: str) -> Path:
    return folder / "codes" / slug(name)


def pack(folder: Path, name: str) -> None:
    """Put the codes of single utterances, as workers left them, into the one file of their system."""
    parts = _codes_folder(folder, name)
    if not parts.is_dir():
        return
    path, found = parts.parent / f"{parts.name}.npz", {}
    if path.exists():
        with np.load(path) as file:
            found = dict(file)
    new = sorted(parts.glob("[!.]*.npy"))
    found |= {part.stem: np.load(part) for part in new}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **{key: found[key] for key in sorted(found)})
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()


def run(
    plan: Plan,
    corpus: Corpus,
    folder: str | Path,
    *,
    jobs: int = 1,
    ray: str | None = None,
    retry: bool = False,
    speed: bool = True,
    command: str = "",
    advance: Callable[[float], None] = lambda seconds: None,
) -> Run:
    """Measure what is not measured yet, and write the card and the summary.

    jobs: processes (0: this one); ray: address of a cluster instead. retry: what ended in an error or a crash is tried
    again. speed: also find how fast each system is and what memory it takes, alone and on one thread.
    Raises SenoneError naming a system, a metric, or a folder that cannot be written or that another process writes to.
    """
    folder = Path(folder)
    if plan.against is not None and plan.against not in plan.systems:
        raise EvalError(f"--against names '{plan.against}', which is not measured; there are {', '.join(plan.systems)}")
    for name in plan.systems:
        system(name)  # before anything is written
    with Book(folder) as book:
        (folder / "summary.json").unlink(missing_ok=True)  # it is of what was there before
        write_json(folder / "run.json", _card(plan, corpus, command))
        todo = tasks(plan, corpus, folder, book.rows, retry)
        spread = over_ray(work, todo, ray) if ray else over_processes(work, todo, jobs)
        with closing(spread):
            for task, found in spread:
                new = _crashed(task, found) if isinstance(found, Crashed) else found
                for row in new:
                    if row.system_fingerprint != system(row.system).fingerprint:
                        raise EvalError(f"'{row.system}' is another one in every process: its weights must be fixed")
                book.add(new)
                advance(task.utterance.seconds * len(task.todo))
        for name in plan.systems:
            pack(folder, name)
        if speed:
            _speeds(plan, corpus, folder)
    run = Run.open(folder)
    write_json(folder / "summary.json", summary.of(run, plan.seed, plan.against))
    return run


def tasks(
    plan: Plan, corpus: Corpus, folder: Path, rows: dict[tuple[str, ...], Row], retry: bool = False
) -> list[Task]:
    """What is left to do, utterance by utterance, so that an early stop leaves systems with the same ones."""
    groups: dict[str, list[System]] = {}
    for name in plan.systems:
        groups.setdefault(system(name).group, []).append(system(name))
    prints = {name: fingerprint(name, plan.align) for name in (*OWN, *plan.metrics)}
    todo = []
    for number, utterance in enumerate(corpus.utterances):
        wanted = [name for name in prints if name in OWN or number < planned(name, plan, corpus)]
        for group in groups.values():
            left = {codec.name: _left(codec, utterance, wanted, prints, folder, rows, retry) for codec in group}
            if any(left.values()):
                found = tuple((name, metrics) for name, metrics in left.items() if metrics)
                todo.append(Task(folder, utterance, found, plan.align))
    return todo


def planned(name: str, plan: Plan, corpus: Corpus) -> int:
    """How many utterances a metric hears."""
    count = len(corpus.utterances)
    return min(plan.heavy, count) if plan.heavy is not None and metric(name).column.heavy else count


def _left(
    codec: System,
    utterance: Utterance,
    wanted: list[str],
    prints: dict[str, str],
    folder: Path,
    rows: dict[tuple[str, ...], Row],
    retry: bool,
) -> tuple[str, ...]:
    start = utterance.id, utterance.content, codec.name, codec.fingerprint
    found = {name: rows.get((*start, name, prints[name])) for name in wanted}
    again = ("error", "crashed") if retry else ()
    left = tuple(name for name, row in found.items() if row is None or row.status in again)
    late = found[DELAY]
    if not left and late is not None and late.status == "ok":  # decoded once: still there, and not by another version?
        if not _holds(audio_file(folder, codec.name, utterance.id), _mark(codec, utterance)):
            return (KBPS,)
    return left


def _crashed(task: Task, found: Crashed) -> list[Row]:
    about = task.utterance.id, task.utterance.speaker, task.utterance.seconds
    return [
        Row(*about, name, system(name).fingerprint, each, fingerprint(each, task.align), None, 1.0, "crashed",
            found.error, task.utterance.content)
        for name, metrics in task.todo
        for each in metrics
    ]  # fmt: skip


def _card(plan: Plan, corpus: Corpus, command: str) -> dict[str, Any]:
    metrics = [
        {
            **asdict(metric(name).column),
            "fingerprint": fingerprint(name, plan.align),
            "planned": planned(name, plan, corpus),
        }
        for name in plan.metrics
    ]
    systems = [system(name) for name in plan.systems]
    return card(command, corpus, systems, metrics, seed=plan.seed, alignment=plan.align)


def probe(task: tuple[str, Utterance]) -> dict[str, float]:
    """x real time (median of TIMES codings, after a warm-up) and peak memory, in a process that does nothing else."""
    name, utterance = task
    codec, audio = system(name), utterance.read()
    wave = audio.wave[0].numpy()
    # another wave each time, as an encoding is kept for the next system
    spent = [codec.code(np.roll(wave, 16 * i), audio.rate, utterance.id).seconds for i in range(1 + TIMES)]
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
    return {
        "real_time": round(audio.seconds / max(float(np.median(spent[1:])), 1e-9), 2),
        "memory_mb": round((peaks[0] or peaks[1]) / 1024),  # of the program, where the codec is one
    }


def _speeds(plan: Plan, corpus: Corpus, folder: Path) -> None:
    """speed.json: what `probe` finds, by system, once for each version of it."""
    path = folder / "speed.json"
    known = read_json(path) if path.exists() else {}
    utterance = min(corpus.utterances, key=lambda utterance: abs(utterance.seconds - PROBE))
    for name in plan.systems:
        codec = system(name)
        if codec.missing or name.startswith(("files:", "identity")) or name in known.get(codec.fingerprint, {}):
            continue
        for _, found in over_processes(_probed, [(name, utterance)], 1):
            known.setdefault(codec.fingerprint, {})[name] = found if isinstance(found, dict) else {}
        write_json(path, known)


def _probed(task: tuple[str, Utterance]) -> dict[str, float]:
    try:
        return probe(task)
    except Exception:  # its rows say what is wrong with it
        return {}
