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
from p2pfl.learn.options import LearnerOptions, PartitionOptions, at_role
from p2pfl.run import RunSpec, exchange_of

__all__ = ["Workload", "check_roles", "cut", "partition_rng"]

# Keeps the draw of a partition apart from every other use of a run's seed: "part" in ASCII.
_PURPOSE = 0x70617274


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The sites of a run.

    datasets: one a site, None where the user's own factory reads `sources`, or there is nothing to learn.
    pooled: all rows of all sites, with the common test rows; None, too.   roles: of `[learner.roles]`, in
    turn for peers 0, 1, 2, ...; empty: the only one there is, or none.
    """

    factory: LearnerFactory
    datasets: tuple[Dataset | None, ...]
    sources: tuple[str, ...]
    pooled: Dataset | None
    roles: tuple[str, ...] = ()

    def role(self, peer: int) -> str:
        """The role of peer number `peer`."""
        return self.roles[peer % len(self.roles)] if self.roles else ""

    def site(self, index: int, spec: RunSpec, peer: int | None = None) -> Site:
        """Site `index` as the factory sees it.   peer: whose role it has, when that is not its own number."""
        role = self.role(index if peer is None else peer)
        options = at_role(spec.learner, role)
        return Site(
            data=self.sources[index],
            name=f"site-{index}",
            seed=spec.run.seed,
            local_steps=options.local_steps,
            options=options,
            dataset=self.datasets[index],
            role=role,
            **exchange_of(spec),
        )


def cut(
    spec: RunSpec,
    peers: int,
    options: PartitionOptions,
    *,
    sources: Sequence[str] = (),
    roles: tuple[str, ...] = (),
) -> Workload:
    """The agreement's data cut into `peers` sites under the run's seed.

    sources: a data source for each site instead; for a learner of the user's own that reads `site.data`.  One
    that takes `dataset_of(site)` can be dealt rows.   roles: as of Workload.   Raises ConfigError.
    """
    factory = resolve(spec.learner)
    if sources and len(sources) != peers:
        raise ConfigError(f"there are {len(sources)} data sources for {peers} peers; give one for each")
    played = {role: at_role(spec.learner, role) for role in roles or spec.learner.roles or ("",)}
    if not all(_has_rows(options, bool(sources)) for options in played.values()):
        return Workload(
            factory=factory,
            datasets=(None,) * peers,
            sources=tuple(sources) or ("",) * peers,
            pooled=None,
            roles=roles,
        )
    if sources:
        parts = [data.load(source, spec.learner.data, spec.run.seed) for source in sources]
        pooled = _joined(parts)
        sites = [replace(part, x_test=pooled.x_test, y_test=pooled.y_test, file_test=None) for part in parts]
        return Workload(
            factory=factory, datasets=tuple(sites), sources=tuple(sources), pooled=pooled, roles=roles
        )
    whole = data.load(spec.learner.data.source, spec.learner.data, spec.run.seed, column=options.column)
    rng = partition_rng(spec.run.seed)
    rows = partition.split(options, whole.y_train, peers, rng, whole.file_train, whole.group_train)
    return Workload(
        factory=factory,
        datasets=tuple(data.part(whole, part) for part in rows),
        sources=("",) * peers,
        pooled=whole,
        roles=roles,
    )


def _has_rows(options: LearnerOptions, has_own: bool) -> bool:
    """Whether a site of that role has rows that are ours to deal."""
    if options.module:
        return bool(options.data.source) and not has_own
    return options.model is None or options.model.kind != "vector"


def check_roles(spec: RunSpec, peers: int, roles: Sequence[str], where: str) -> None:
    """Refuse roles that the agreement has not, and more of them than peers.  Raises ConfigError."""
    if len(roles) > peers:
        raise ConfigError(
            f"{where}: simulation.roles names {len(roles)} roles for {peers} peers; give one for each, or a"
            " few that repeat"
        )
    try:
        for role in roles or ("",):
            at_role(spec.learner, role)
    except ConfigError as error:
        raise ConfigError(f"{where}: simulation.roles, who plays which of learner.roles: {error}") from error


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
        groups=(),
        group_train=None,
    )
