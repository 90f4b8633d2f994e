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
from p2pfl.learn.learner import LearnerFactory, Site
from p2pfl.learn.options import LearnerOptions, at_role
from p2pfl.learn.probes import digest_of, read
from p2pfl.work import Job, Work, Worked

__all__ = ["PROBE", "digits", "options", "shop", "work"]

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
