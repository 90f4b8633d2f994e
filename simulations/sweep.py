"""Trials: every cell of a scenario under every seed, side by side, and kept for the next time.

Theory of operation.  A trial is a pure function of its scenario and seed, so where and when it runs changes
nothing.  With one job it runs here; with several, at as many processes or workers of Ray (parallel.py).
Whatever the order they end in, they are handed on in the order of cells and seeds.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import p2pfl
from p2pfl import errors
from p2pfl.errors import ConfigError, LocalError, P2PFLError, StoreError
from p2pfl.events import Fact

from . import event_file, parallel, shards
from .balance import Job
from .grid import shown
from .scenario import Scenario
from .trial import run_trial

__all__ = ["Trial", "key", "run", "trials"]

_Verdict = dict[str, Any]


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
    on_ray: bool = False,
    folder: Path | None = None,
    fresh: bool = False,
    listen: Callable[[Trial], Callable[[float, int, Fact], None] | None] = lambda _: None,
    done: Callable[[Trial, _Verdict, bool], None] = lambda *_: None,
) -> list[_Verdict]:
    """The verdicts on `todo`, in its order, each with its `cell`, `seed` and `trial`, the key, and with a
    folder its `file`, beside which its events are.

    folder: where verdicts are kept and, unless `fresh`, found again; trials of a user's own code are never
    found, because what it imports is not known.   listen: facts of a trial as they occur, with one job only.
    on_ray: jobs are Ray's workers, not processes here, 0 as many as it has processors; trials that are split
    over them run one after the other.   done: each verdict, in the order of `todo`, and whether it was found.
    Raises P2PFLError with the trial.
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
    is_split = any(_is_split(trial.scenario) for _, trial in missing)
    if is_split and jobs > 1:
        raise ConfigError("engine ray gives its workers to one trial at a time; leave --jobs out")
    if is_split or len(missing) < 2 or (jobs == 1 and not on_ray):
        # Ray takes seconds to begin, so all trials have the same.
        with shards.cluster() if is_split else contextlib.nullcontext():
            for number, trial in missing:
                finish(number, _here(trial, folder, listen(trial)))
    else:
        _at_once(missing, jobs, on_ray, folder, finish)
    return [verdicts[number] for number in range(len(todo))]


def _is_split(scenario: Scenario) -> bool:
    """Whether the peers of this trial lie at several workers."""
    return scenario.simulation.engine == "ray" and scenario.simulation.shards != 1


def _here(trial: Trial, folder: Path | None, listener: Callable[[float, int, Fact], None] | None) -> _Verdict:
    """The verdict on a trial that is run in this process, its events kept."""
    events: list[dict[str, Any]] | None = None if folder is None else []
    try:
        verdict = run_trial(trial.scenario, listener=listener, cell=trial.cases, events=events)
    except P2PFLError as error:
        raise _named(trial, type(error).__name__, str(error)) from error
    if folder is not None and events is not None:
        event_file.write(event_file.place(folder / trial.file_name), events, key(trial))
    return verdict


# --- side by side ----------------------------------------------------------------------------------------


def _at_once(
    todo: Sequence[tuple[int, Trial]],
    jobs: int,
    on_ray: bool,
    folder: Path | None,
    finish: Callable[[int, _Verdict], None],
) -> None:
    """Have `jobs` workers run what is to be done, and hand on each verdict as it comes."""

    def file_of(trial: Trial) -> Path | None:
        return None if folder is None else event_file.place(folder / trial.file_name)

    def order(trial: Trial) -> str:
        file = file_of(trial)
        # Ray's workers may be on machines that have not this folder: they tell the events.
        events = None if file is None else "" if on_ray else str(file)
        parts = {"cell": dict(trial.cases), "trial": key(trial), "events": events}
        return json.dumps({**_order(trial.scenario), **parts})

    def done(position: int, answer: dict[str, Any]) -> None:
        number, trial = todo[position]
        match answer:
            case {"verdict": verdict, "events": events}:
                file = file_of(trial)
                if file is not None and events is not None:
                    event_file.write(file, events, key(trial))
                finish(number, verdict)
            case {"error": kind, "message": message}:
                raise _named(trial, kind, message)

    trials = [trial for _, trial in todo]
    orders, works = list(map(order, trials)), list(map(_work, trials))
    if on_ray:
        with shards.cluster(processors=jobs) as cluster:
            workers = min(jobs or cluster.processors, len(todo))
            parallel.at_ray_workers(cluster, orders, works, workers, done)
    else:
        parallel.in_processes(orders, works, min(jobs, len(todo)), done)


def _work(trial: Trial) -> Job:
    """What is known of how long a trial takes before it has run; those of one cell differ by chance."""
    spec, options = trial.scenario.spec, trial.scenario.simulation
    rounds, learner = spec.run.rounds + spec.run.closing_rounds, spec.learner
    # The logarithms of sizes are taken, and no round at all is a cell of its own.
    sizes = (options.peers, max(rounds, 1), learner.local_steps * learner.batch_size)
    return Job(sizes=tuple(map(float, sizes)), kind=shown(trial.cases) if trial.cases else "")


def _order(scenario: Scenario) -> dict[str, Any]:
    """A cell's scenario, checked and with every default spelled out, as trial_worker.py takes it."""
    parts = {"name": scenario.name, "spec": scenario.spec, "simulation": scenario.simulation}
    order: dict[str, Any] = msgspec.to_builtins(parts)
    return order


def _named(trial: Trial, kind: str, message: str) -> P2PFLError:
    """An error of the tree by its name, with the trial in front."""
    found = getattr(errors, kind, LocalError)
    assert issubclass(found, P2PFLError)
    return found(f"{trial.name}: {message}")


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
