"""Learners of digits in an exchange of knowledge, and jobs for them, for tests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import msgspec
import numpy as np

from p2pfl.learn.data import Dataset, load, part
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.jobs import Workshop
from p2pfl.learn.learner import LearnerFactory, Site, Update
from p2pfl.learn.options import LearnerOptions, at_role
from p2pfl.learn.probes import digest_of, read
from p2pfl.work import Expected, Job, Work, Worked

__all__ = ["PROBE", "Recording", "digits", "done", "options", "recorded", "shop", "work"]

# Forty digits that `digits` has not among its first rows.
_SOURCE = "sklearn:digits#1000-1040"


def digits(rows: int = 60, test: int = 50, first: int = 0) -> Dataset:
    """A site with few digits."""
    whole = _whole()
    return part(whole, np.arange(first, first + rows), np.arange(test))


@cache
def _whole() -> Dataset:
    return load("sklearn:digits#0-1000")


@cache
def _probe() -> dict[str, Any]:
    rows = read(_SOURCE)
    return {"probe_source": _SOURCE, "probe_digest": digest_of(rows), "probe_samples": len(rows)}


PROBE = _probe()


def options(**table: Any) -> LearnerOptions:
    """`[learner]` of a quick run on digits."""
    whole = {"local_steps": 6, "batch_size": 10, "optimizer": {"lr": 0.05}, "model": {"kind": "mlp"}}
    return msgspec.convert(whole | table, LearnerOptions)


def shop(
    kind: str = "none",
    chosen: LearnerOptions | None = None,
    *,
    factory: LearnerFactory | None = None,
    **site: Any,
) -> Workshop:
    """A learner at work in an exchange of `kind`."""
    chosen = at_role(chosen or options(), site.get("role", ""))
    whole = Site(
        seed=3, options=chosen, dataset=digits(), exchange=kind, **(PROBE if kind == "probe" else {})
    )
    return Workshop(partial(build, factory or resolve(chosen)), replace(whole, **site))


def work(job: Job, parameters: Any, number: int = 1, **fields: Any) -> Work:
    """A job of round 4."""
    rest: dict[str, Any] = {"seed": (7, number), "progress": 0.5, "deadline": float("inf")}
    return Work(round=4, number=number, job=job, parameters=parameters, **(rest | fields))


def done(bench: Workshop, job: Job, parameters: Any, number: int = 1) -> Worked:
    """What the job gave; it did not fail."""
    worked = bench.work(work(job, parameters, number))
    assert worked.fault == ""
    assert (worked.round, worked.number) == (4, number)
    return worked


class Recording:
    """A learner cut in two that notes what it is asked."""

    def __init__(self, site: Site) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.x, self.labels = np.arange(40, dtype=np.float32).reshape(20, 2), np.arange(20) % 3
        self.hub = np.zeros(4, np.float32)

    holds_hub_model = True

    def parameters(self) -> Any:
        return np.zeros(2, np.float32)

    def evaluate(self, parameters: Any) -> Any:
        return {}

    def fit(self, parameters: Any, rng: Any) -> Update:
        raise AssertionError("a hub run's fits are all taught")

    def expected(self) -> Expected:
        return Expected(classes=3, width=2, model_values=4)

    def classes(self) -> int:
        return 3

    def own_rows(self) -> Any:
        return self.x, self.labels

    def features(self, parameters: Any, x: Any) -> Any:
        return np.asarray(x, np.float32)

    def answer(self, parameters: Any, x: Any) -> Any:
        return np.tile(np.array([[1.0, 2.0, 0.5]], np.float32), (len(x), 1))

    def fit_taught(self, parameters: Any, x: Any, labels: Any, targets: Any, rng: Any, **how: Any) -> Update:
        self.asked.append((x, labels, targets, how))
        return Update(parameters=parameters + 1, samples=len(x))

    def learn(self, hidden: Any, labels: Any, targets: Any, rng: Any, **how: Any) -> Any:
        self.asked.append((hidden, labels, targets, how))
        return {"train_loss": 1.0}

    def hub_answer(self, hidden: Any) -> Any:
        return np.concatenate([hidden, hidden[:, :1]], axis=1)

    def hub_model(self) -> Any:
        return self.hub

    def adopt_hub_model(self, model: Any) -> None:
        self.hub = model


def recorded() -> tuple[Any, Recording]:
    """A learner that notes what it is asked, at work."""
    bench = shop("hub", factory=Recording)
    found: Any = bench.learner
    return bench, found
