"""Fused populations, and the exact ones they are compared with."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from hands import OwnHands
from numpy.typing import NDArray

from p2pfl.learn import data, partition
from p2pfl.learn.data import Dataset
from p2pfl.learn.descent import Course
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.options import PartitionOptions
from p2pfl.run import RunSpec, decode
from p2pfl.simulations.fleet import Fleet, nominal, own_matrix
from p2pfl.simulations.holdings import holdings
from p2pfl.simulations.kernels import Kernels, drill
from p2pfl.simulations.lazy import Pool, Resume
from p2pfl.simulations.matrix import Matrix
from p2pfl.simulations.plain import Plain
from p2pfl.simulations.population import Population
from p2pfl.simulations.routes import routes_of
from p2pfl.simulations.shards import Hands, Shards
from p2pfl.simulations.workload import Workload, partition_rng

__all__ = [
    "TOPOLOGIES",
    "UNEVEN",
    "agreement",
    "blobs",
    "course_of",
    "exact",
    "fleet",
    "matrix_of",
    "pool",
    "ran",
]

_Engine = TypeVar("_Engine", Fleet, Pool)

UNEVEN: dict[str, Any] = {
    "kind": "explicit",
    "edges": [[0, 1], [1, 2], [2, 0], [0, 2], [2, 3], [3, 4], [4, 5], [5, 0], [5, 6], [6, 7], [7, 0]],
    "directed": True,
}
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "complete": {"kind": "complete"},
    "exponential": {"kind": "exponential"},
    "one-peer-exponential": {"kind": "one-peer-exponential"},
    "ring": {"kind": "ring"},
    "directed ring": {"kind": "ring", "directed": True},
    "star": {"kind": "star"},
    "random graph": {"kind": "random-regular", "degree": 3},
    "changing random graph": {"kind": "random-regular", "degree": 3, "redraw": True},
    "base": {"kind": "base", "degree": 2},
    "shifts of their own weights": {"kind": "d-equistatic", "degree": 3},
    "pairs": {"kind": "random-matching"},
    "epidemic": {"kind": "el-local", "degree": 2},
}


def blobs(rows: int = 96, columns: int = 6, classes: int = 3) -> Dataset:
    """Gaussian clouds, one a class."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(classes, columns))
    y = np.arange(rows, dtype=np.int64) % classes
    x = (centres[y] + 0.4 * rng.normal(size=(rows, columns))).astype(np.float32)
    return Dataset(x_train=x, y_train=y, x_test=x[:12], y_test=y[:12], n_classes=classes)


def agreement(n: int, **tables: dict[str, Any]) -> RunSpec:
    """An agreement of `n` members on a model, with full-batch steps unless `tables` say otherwise."""
    run = {"rounds": 5, "closing_rounds": 2, "members_at_start": min(n, 4096), **tables.pop("run", {})}
    optimizer = {"lr": 0.3, "momentum": 0.5, "weight_decay": 1e-3, "schedule": "cosine"}
    learner = {
        "local_steps": 2,
        "batch_size": 1000,
        "model": {"kind": "logistic"},
        "optimizer": optimizer,
        **tables.pop("learner", {}),
    }
    return decode({"run": run, "learner": learner, **tables}, "test")


def fleet(
    n: int,
    spec: RunSpec,
    kernels: Kernels,
    *,
    dataset: Dataset | None = None,
    options: PartitionOptions | None = None,
    threads: int = 1,
    shards: int = 1,
    hands: Hands | None = None,
) -> Fleet:
    """A fused population that has yet to take its first round.   shards: split so, over workers here."""
    whole = dataset or blobs()
    course, theta = course_of(spec, whole)
    held = holdings(whole, n, options or PartitionOptions(), spec.run.seed)
    if shards > 1:
        weights, does, routes = nominal(spec, held), drill(course), routes_of(spec, n)
        workers = hands or OwnHands()
        split = Shards(
            workers, held, weights, theta, does, spec.run.seed, routes, shards=shards, threads=threads
        )
        return Fleet(spec, held, course, theta, split)
    matrix = own_matrix(spec, held, course, theta, kernels=kernels, threads=threads)
    return Fleet(spec, held, course, theta, matrix)


def matrix_of(population: Fleet) -> Matrix:
    """The rows of a fused population that lie in this process."""
    assert isinstance(population.matrix, Matrix)
    return population.matrix


def pool(
    n: int,
    spec: RunSpec,
    *,
    active: int,
    resume: Resume,
    dataset: Dataset | None = None,
) -> Pool:
    """A pool whose peers draw 9 rows of 2 classes, by the kernels in numpy, before its first round."""
    whole = dataset or blobs()
    course, theta = course_of(spec, whole)
    held = holdings(whole, n, PartitionOptions(kind="drawn", rows=9, classes=2), spec.run.seed)
    return Pool(spec, held, course, theta, active=active, resume=resume, kernels=Plain(), threads=1)


def ran(population: _Engine) -> _Engine:
    """The same with its run over."""
    while not population.is_over:
        population.step()
    population.finish()
    return population


def exact(
    n: int, spec: RunSpec, dataset: Dataset | None = None, options: PartitionOptions | None = None
) -> Population:
    """What `population.py` makes of the same, its run over."""
    whole = dataset or blobs()
    parts = partition.split(
        options or PartitionOptions(), whole.y_train, n, partition_rng(spec.run.seed), whole.file_train
    )
    sites = _workload(spec, tuple(data.part(whole, part) for part in parts))
    population = Population(spec, sites.factory, [sites.site(i, spec) for i in range(n)])
    population.run()
    return population


def course_of(spec: RunSpec, whole: Dataset) -> tuple[Course, NDArray[np.float32]]:
    """What every fit does, and the first model of all."""
    learner = build(resolve(spec.learner), _workload(spec, (whole,)).site(0, spec))
    assert isinstance(learner, NumpyLearner)
    course = learner.course()
    assert course is not None
    return course, learner.parameters()


def _workload(spec: RunSpec, datasets: tuple[Dataset, ...]) -> Workload:
    return Workload(
        factory=resolve(spec.learner), datasets=datasets, sources=("",) * len(datasets), pooled=None
    )
