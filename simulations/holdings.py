"""Who of very many peers has which rows: numbers of rows of one data set that all share, never copies.

`n` peers, `m` of them asked about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.learn import partition
from p2pfl.learn.data import Dataset
from p2pfl.learn.options import PartitionOptions

from .kernels import Rows
from .workload import partition_rng

__all__ = ["Holdings", "holdings"]

# Peers whose rows are drawn at a time: their random words take 100 MB.
_PEERS = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """The rows of every peer.   table, counts: as in kernels.Rows; None: drawn when asked for."""

    dataset: Dataset
    n: int
    options: PartitionOptions
    seed: int
    table: NDArray[np.int32] | None = None
    counts: NDArray[np.int32] | None = None

    @property
    def width(self) -> int:
        """The most rows that a peer has."""
        return self.options.rows if self.table is None else self.table.shape[1]

    def of(self, peers: NDArray[np.integer]) -> Rows:
        """The rows of some peers."""
        ids = np.asarray(peers, np.int32)
        if self.table is not None and self.counts is not None:
            table, counts = self.table[ids], self.counts[ids]
        else:
            labels, options = self.dataset.y_train, self.options
            table = np.empty((len(ids), options.rows), np.int32)
            for at in range(0, len(ids), _PEERS):
                table[at : at + _PEERS] = partition.drawn(
                    labels, ids[at : at + _PEERS].astype(np.int64), options.rows, options.classes, self.seed
                )
            counts = np.full(len(ids), options.rows, np.int32)
        return Rows(x=self.dataset.x_train, y=self.dataset.y_train, table=table, counts=counts, ids=ids)

    def samples(self) -> NDArray[np.float64]:
        """How many rows each peer has, (n,)."""
        if self.counts is None:
            return np.full(self.n, float(self.options.rows))
        return self.counts.astype(np.float64)


def holdings(dataset: Dataset, n: int, options: PartitionOptions, seed: int) -> Holdings:
    """The training rows of `dataset` dealt to n peers as workload.cut deals them.   seed: the run's.

    Raises ConfigError when they cannot be.
    """
    rng = partition_rng(seed)
    if options.kind == "drawn":
        found = Holdings(dataset=dataset, n=n, options=options, seed=int(rng.integers(2**63)))
        # Refuse now what any peer would be refused.
        found.of(np.zeros(1, np.int32))
        return found
    if n > len(dataset.y_train):
        raise ConfigError(
            f"partition {options.kind!r} gives each row to one of {n} peers, and there are"
            f' {len(dataset.y_train)}; use kind = "drawn", in which peers share rows'
        )
    parts = partition.split(options, dataset.y_train, n, rng, dataset.file_train)
    counts = np.array([len(part) for part in parts], np.int32)
    table = np.zeros((n, int(counts.max())), np.int32)
    for i, part in enumerate(parts):
        table[i, : len(part)] = part
    return Holdings(dataset=dataset, n=n, options=options, seed=seed, table=table, counts=counts)
