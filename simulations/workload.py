"""Who has which rows: one data source cut into sites, with test rows that all models are judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.learn import data, partition
from p2pfl.learn.data import Dataset
from p2pfl.learn.factory import resolve
from p2pfl.learn.learner import LearnerFactory, Site
from p2pfl.learn.options import PartitionOptions
from p2pfl.run import RunSpec

__all__ = ["Workload", "cut", "partition_rng"]

# Keeps the draw of a partition apart from every other use of a run's seed: "part" in ASCII.
_PURPOSE = 0x70617274


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The sites of a run.

    datasets: one a site, None where the user's own factory reads `sources`.   pooled: all rows of all sites,
    with the common test rows.
    """

    factory: LearnerFactory
    datasets: tuple[Dataset | None, ...]
    sources: tuple[str, ...]
    pooled: Dataset | None

    def site(self, index: int, spec: RunSpec) -> Site:
        """Site `index` as the factory sees it."""
        return Site(
            data=self.sources[index],
            name=f"site-{index}",
            seed=spec.run.seed,
            local_steps=spec.learner.local_steps,
            options=spec.learner,
            dataset=self.datasets[index],
        )


def cut(
    spec: RunSpec,
    peers: int,
    options: PartitionOptions,
    *,
    sources: Sequence[str] = (),
) -> Workload:
    """The agreement's data cut into `peers` sites under the run's seed.

    sources: a data source for each site instead; required where the learner is the user's own module and
    reads `site.data`.   Raises ConfigError.
    """
    factory = resolve(spec.learner)
    if sources and len(sources) != peers:
        raise ConfigError(f"there are {len(sources)} data sources for {peers} peers; give one for each")
    if spec.learner.module:
        return Workload(
            factory=factory, datasets=(None,) * peers, sources=tuple(sources) or ("",) * peers, pooled=None
        )
    if sources:
        parts = [data.load(source, spec.learner.data, spec.run.seed) for source in sources]
        pooled = _joined(parts)
        sites = [replace(part, x_test=pooled.x_test, y_test=pooled.y_test, file_test=None) for part in parts]
        return Workload(factory=factory, datasets=tuple(sites), sources=tuple(sources), pooled=pooled)
    whole = data.load(spec.learner.data.source, spec.learner.data, spec.run.seed)
    rng = partition_rng(spec.run.seed)
    rows = partition.split(options, whole.y_train, peers, rng, whole.file_train)
    return Workload(
        factory=factory,
        datasets=tuple(data.part(whole, part) for part in rows),
        sources=("",) * peers,
        pooled=whole,
    )


def partition_rng(seed: int) -> np.random.Generator:
    """What the partition under a run's seed is drawn with."""
    return np.random.default_rng([seed, _PURPOSE])


def _joined(parts: Sequence[Dataset]) -> Dataset:
    first = parts[0]
    for part in parts:
        if (part.features, part.classes, part.n_classes) != (first.features, first.classes, first.n_classes):
            raise ConfigError(
                f"the sites' files have different columns or classes: {first.features} {first.classes} and"
                f" {part.features} {part.classes}; set learner.data.features and classes"
            )
    return replace(
        first,
        x_train=np.concatenate([part.x_train for part in parts]),
        y_train=np.concatenate([part.y_train for part in parts]),
        x_test=np.concatenate([part.x_test for part in parts]),
        y_test=np.concatenate([part.y_test for part in parts]),
        files=(),
        file_train=None,
        file_test=None,
    )
