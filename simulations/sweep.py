"""Trials: every cell of a scenario under every seed, side by side in processes, and kept for the next time.

Theory of operation.  A trial is a pure function of its scenario and seed, so where and when it runs changes
nothing.  With one job it runs here; with several, each of as many processes (trial_worker.py) takes the next
trial that nobody has.  Whatever the order they end in, they are handed on in the order of cells and seeds.

In a folder, a trial is two files, each written whole or not at all, that hold its key: a hash of all that the
verdict follows from, which is the resolved scenario, the seed, the data files' names, sizes and times, and
p2pfl's own code.  The events (event_file.py) come first, the verdict seals them; a trial whose files have the
right key is not run again, so a sweep that was killed goes on.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import trio

import p2pfl
from p2pfl import errors
from p2pfl.errors import LocalError, P2PFLError, StoreError
from p2pfl.events import Fact

from . import event_file
from .grid import shown
from .scenario import Scenario
from .trial import run_trial

__all__ = ["Trial", "key", "run", "trials"]

_Verdict = dict[str, Any]
# One read of a worker's answer; a verdict has about 400 bytes a peer.
_READ_BYTES = 1 << 16
# Seconds that a process may take to go once it has closed its end or was killed; it does so at once.
_REAP_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A cell of a scenario under a seed.   cases: the cell's, by axis."""

    cases: Mapping[str, str]
    scenario: Scenario

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.scenario.spec.run.seed

    @property
    def name(self) -> str:
        """As a person reads it: `attack alie, aggregator monna, seed 3`."""
        return shown({**self.cases, "seed": str(self.seed)})

    @property
    def file_name(self) -> str:
        """Of its verdict.  No two trials of a scenario share it: `=` is in no name of an axis or a case."""
        place = "".join(f"-{axis}={case}" for axis, case in self.cases.items())
        return f"{self.scenario.name}{place}-seed-{self.seed}.json"


def trials(scenario: Scenario, seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Every cell under every seed, the seeds of a cell together."""
    return tuple(
        Trial(cases=cell.cases, scenario=cell.scenario.with_seed(seed))
        for cell in scenario.cells
        for seed in seeds
    )


def key(trial: Trial) -> str:
    """SHA-256, in hex, of all that the verdict on a trial follows from."""
    scenario = trial.scenario
    sources = (scenario.spec.learner.data.source, *scenario.simulation.data)
    parts = [_order(scenario), list(map(_files, sources)), _code(), np.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def run(
    todo: Sequence[Trial],
    *,
    jobs: int = 1,
    folder: Path | None = None,
    fresh: bool = False,
    listen: Callable[[Trial], Callable[[float, int, Fact], None] | None] = lambda _: None,
    done: Callable[[Trial, _Verdict, bool], None] = lambda *_: None,
) -> list[_Verdict]:
    """The verdicts on `todo`, in its order, each with its `cell`, `seed` and `trial`, the key, and with a
    folder its `file`, beside which its events are.

    folder: where verdicts are kept and, unless `fresh`, found again; trials of a user's own code are never
    found, because what it imports is not known.   listen: facts of a trial as they occur, with one job only.
    done: each verdict, in the order of `todo`, and whether it was found.   Raises P2PFLError with the trial.
    """
    verdicts: dict[int, _Verdict] = {}
    told = 0
    found = set()

    def end(number: int, verdict: _Verdict) -> None:
        nonlocal told
        verdicts[number] = verdict
        while told in verdicts:
            done(todo[told], verdicts[told], told in found)
            told += 1

    def finish(number: int, verdict: _Verdict) -> None:
        trial = todo[number]
        verdict = {**verdict, "cell": dict(trial.cases), "trial": key(trial)}
        end(number, verdict if folder is None else _kept(folder / trial.file_name, verdict))

    missing = []
    for number, trial in enumerate(todo):
        old = None if folder is None or fresh else _found(folder / trial.file_name, trial)
        if old is None:
            missing.append((number, trial))
        else:
            found.add(number)
            end(number, old)
    if jobs == 1 or len(missing) < 2:
        for number, trial in missing:
            events: list[dict[str, Any]] | None = None if folder is None else []
            try:
                verdict = run_trial(trial.scenario, listener=listen(trial), cell=trial.cases, events=events)
                if folder is not None and events is not None:
                    event_file.write(event_file.place(folder / trial.file_name), events, key(trial))
                finish(number, verdict)
            except P2PFLError as error:
                raise _named(trial, type(error).__name__, str(error)) from error
    else:
        try:
            trio.run(_all, missing, jobs, folder, finish)
        except BaseExceptionGroup as group:
            raise _first(group) from None
    return [verdicts[number] for number in range(len(todo))]


# --- processes -------------------------------------------------------------------------------------------


async def _all(
    todo: Sequence[tuple[int, Trial]],
    jobs: int,
    folder: Path | None,
    finish: Callable[[int, _Verdict], None],
) -> None:
    queue = iter(todo)
    async with trio.open_nursery() as nursery:
        for _ in range(min(jobs, len(todo))):
            nursery.start_soon(_serve, queue, folder, finish)


async def _serve(
    queue: Iterator[tuple[int, Trial]], folder: Path | None, finish: Callable[[int, _Verdict], None]
) -> None:
    """One process, and the trials it takes."""
    # Started from this thread, whose end the kernel takes for its parent's; trio would use one of its pool,
    # which end when idle.  In a session of its own, because Ctrl-C is for us, who then end it.
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pfl.simulations.trial_worker", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    orders = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
    answers = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
    process.stdin.close()
    process.stdout.close()
    try:
        for number, trial in queue:
            order = {**_order(trial.scenario), "cell": dict(trial.cases), "trial": key(trial)}
            order["events"] = None if folder is None else str(event_file.place(folder / trial.file_name))
            # A process that has ended says so by its answer.
            with contextlib.suppress(trio.BrokenResourceError):
                await orders.send_all(json.dumps(order).encode() + b"\n")
            answer = await _line(answers)
            if not answer:
                code = process.wait(_REAP_S)
                raise _named(
                    trial,
                    "LocalError",
                    f"its process ended with {code}; was it out of memory? try fewer --jobs",
                )
            match json.loads(answer):
                case {"verdict": verdict}:
                    finish(number, verdict)
                case {"error": kind, "message": message}:
                    raise _named(trial, kind, message)
    finally:
        process.kill()
        orders.close()
        answers.close()
        process.wait(_REAP_S)


def _order(scenario: Scenario) -> dict[str, Any]:
    """A cell's scenario, checked and with every default spelled out, as trial_worker.py takes it."""
    parts = {"name": scenario.name, "spec": scenario.spec, "simulation": scenario.simulation}
    order: dict[str, Any] = msgspec.to_builtins(parts)
    return order


async def _line(stream: trio.abc.ReceiveStream) -> bytes:
    """The next answer; empty at the end.  Nothing is read ahead, because one answer follows one order."""
    answer = bytearray()
    while not answer.endswith(b"\n"):
        part = await stream.receive_some(_READ_BYTES)
        if not part:
            return b""
        answer += part
    return bytes(answer)


def _named(trial: Trial, kind: str, message: str) -> P2PFLError:
    """An error of the tree by its name, with the trial in front."""
    found = getattr(errors, kind, LocalError)
    assert issubclass(found, P2PFLError)
    return found(f"{trial.name}: {message}")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What one process failed with; the others were cancelled, or failed at the same moment."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


# --- what is kept ----------------------------------------------------------------------------------------


def _found(path: Path, trial: Trial) -> _Verdict | None:
    if trial.scenario.spec.learner.module or trial.scenario.spec.gossip.topology.function:
        return None
    beside = event_file.place(path)
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}; remove it, or give --fresh") from error
    is_ours = isinstance(verdict, dict) and verdict.get("trial") == key(trial)
    return {**verdict, "file": str(path)} if is_ours and event_file.is_of(beside, key(trial)) else None


def _kept(path: Path, verdict: _Verdict) -> _Verdict:
    verdict = {**verdict, "file": str(path)}
    fresh = path.with_suffix(".tmp")
    try:
        fresh.write_text(json.dumps(verdict, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; is there room?") from error
    return verdict


def _files(source: str) -> list[tuple[str, int, int]]:
    """The files a data source is read from: name, bytes, time of the last change in nanoseconds."""
    kind, separator, place = source.partition(":")
    if kind == "sklearn" or not source:
        return []
    pattern = str(Path(place if separator else source).expanduser())
    paths = [Path(name) for name in glob.glob(pattern)]  # noqa: PTH207, as learn/tables.py does
    files = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path])]
    return sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@cache
def _code() -> str:
    """SHA-256 of p2pfl's own modules: a verdict of other code, or of another version, is another verdict."""
    digest = hashlib.sha256()
    for root in (*p2pfl.__path__, str(Path(__file__).parent)):
        for folder, inner, names in os.walk(root, followlinks=True):
            inner.sort()
            for path in sorted(Path(folder) / name for name in names if name.endswith(".py")):
                digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
