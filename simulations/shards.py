"""A fused population split over Ray workers: the only file that imports Ray (the extra `ray`), when asked to.

A few workers, one a machine or one a few processors, never one a peer.  In each round every worker lends the
rows that others hear, in pieces, puts those that it hears into its halo, and takes the round (shard.py).  The
driver, this process, has the weights, which are 8 bytes a peer, and no models.  Nothing depends on who has
which rows, so all results are those of one process, to the last bit.

Ray pickles what passes between its processes.  All of them are ours: whoever can reach a Ray cluster can run
code on it, so it is no part of a federation, and must not be open to other sites.
`n` peers, `S` shards.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError, LocalError, P2PFLError
from p2pfl.gossip.mixing import Floats, Vectors

from .halo import Halo, bounds, halo, loans, local
from .holdings import Holdings
from .kernels import Drill, Links
from .matrix import BLOCK, own_threads
from .routes import Route
from .shard import Order, Shard

__all__ = ["Cluster", "Hands", "Shards", "cluster"]

# Rows travel in pieces of so many bytes, so that what is on the way stays small beside what is held.
_PIECE_BYTES = 2**26
# Peers in the round that tells how fast a worker is, and by how much the fastest must lead for it to matter:
# workers of equal machines differ by less, and equal shards are best then.
_SAMPLE_PEERS, _LEAD = 512, 1.25
# Ray's own store of arrays on this machine: a few pieces for every worker.
_STORE_BYTES = 2**30
# Ray gives up when its processes take more than 15 s to answer, as they do on a busy machine.
_STARTS = 3


class Hands(Protocol):
    """Workers that do what they are told, each one thing after the other, in the order of the calls."""

    machines: int

    def hire(self, kind: type, *arguments: Any, processors: int) -> Any:
        """A worker: an object of that class, somewhere."""
        ...

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Have it called; returns a promise at once.  Arguments may be promises, and are awaited there."""
        ...

    def get(self, promises: Sequence[Any]) -> list[Any]:
        """What they became.  Raises P2PFLError."""
        ...


class Shards:
    """The rows of all peers at `S` workers; see matrix.Models."""

    def __init__(
        self,
        hands: Hands,
        holdings: Holdings,
        weights: Floats,
        theta: NDArray[np.float32],
        drill: Drill,
        seed: int,
        routes: Sequence[Route] | None,
        *,
        shards: int,
        threads: int,
    ) -> None:
        """routes: all there will be, None when they are not known before.   threads: of each worker.

        Raises ConfigError when a machine has not the memory.
        """
        self._hands, n, d = hands, holdings.n, len(theta)
        self._workers = [hands.hire(Shard, threads, processors=threads) for _ in range(shards)]
        self._piece = max(1, _PIECE_BYTES // (4 * d))
        self._halos: list[tuple[Route, list[Halo]]] = []
        # Graphs that are drawn anew are not seen again.
        self._routes_kept = 1 if routes is None else len(routes)
        sharers = math.ceil(shards / hands.machines)

        def order(lo: int, hi: int, reach: int) -> Order:
            table, options = holdings.table, holdings.options
            return Order(
                first=lo,
                peers=hi - lo,
                x=holdings.dataset.x_train,
                y=holdings.dataset.y_train,
                table=None if table is None else table[lo:hi],
                counts=None if holdings.counts is None else holdings.counts[lo:hi],
                drawn=(options.rows, options.classes, holdings.seed),
                weights=weights[lo:hi],
                theta=theta,
                drill=drill,
                seed=seed,
                reach=reach,
                sharers=sharers,
            )

        sample = order(0, min(n, _SAMPLE_PEERS), 0)
        speeds: list[float] = self._all("speed", [(sample,)] * shards)
        is_even = max(speeds) < _LEAD * min(speeds)
        self._edges = bounds(n, [1.0] * shards if is_even else speeds, BLOCK)
        reach = [n - (hi - lo) for lo, hi in pairwise(self._edges)]
        if routes is not None:
            one = np.ones(n)
            found = [[len(part.rows) for part in self._heard(route, route.mix(one)[0])] for route in routes]
            reach = [max(heights) for heights in zip(*found, strict=True)]
        self._all(
            "occupy", [(order(*ends, r),) for ends, r in zip(pairwise(self._edges), reach, strict=True)]
        )
        (self.kernels,) = hands.get([hands.call(self._workers[0], "kernels")])

    @property
    def shards(self) -> int:
        """How many workers hold the rows."""
        return len(self._workers)

    def advance(
        self,
        route: Route | None,
        links: Links,
        scale: NDArray[np.float32],
        gain: NDArray[np.float32],
        rate: float,
        number: int,
    ) -> NDArray[np.float32]:
        """A training round of all: rows to their hearers, then every shard at once."""
        heard = self._exchange(route, links)
        told = [
            (local(links, one, lo, hi), scale[lo:hi], gain[lo:hi], rate, number, len(one.rows))
            for one, (lo, hi) in zip(heard, pairwise(self._edges), strict=True)
        ]
        return np.concatenate(self._all("advance", told))

    def blend(self, route: Route | None, links: Links) -> None:
        """A round that only mixes."""
        heard = self._exchange(route, links)
        told = [
            (local(links, one, lo, hi), len(one.rows))
            for one, (lo, hi) in zip(heard, pairwise(self._edges), strict=True)
        ]
        self._all("blend", told)

    def total(self, scale: NDArray[np.float32]) -> Floats:
        """The sum of all rows, each times its scale; block by block, as one process takes it."""
        parts = self._all("totals", [(scale[lo:hi],) for lo, hi in pairwise(self._edges)])
        found: Floats = np.sum([block for part in parts for block in part], axis=0)
        return found

    def spread(self, scale: NDArray[np.float32], mean: Floats) -> float:
        """The sum of their squared distances from `mean`."""
        parts = self._all("spreads", [(scale[lo:hi], mean) for lo, hi in pairwise(self._edges)])
        return math.fsum(block for part in parts for block in part)

    def take(self, peers: NDArray[np.integer]) -> Vectors:
        """Some rows."""
        found: list[Any] = []
        places: list[NDArray[np.int64]] = []
        for worker, (lo, hi) in zip(self._workers, pairwise(self._edges), strict=True):
            (here,) = np.nonzero((peers >= lo) & (peers < hi))
            if len(here):
                rows = peers[here].astype(np.int64) - lo
                found.append(self._hands.call(worker, "lend", 0, len(rows), rows))
                places.append(here)
        rows_of = self._hands.get(found)
        out = np.empty((len(peers), rows_of[0].shape[1]), np.float32)
        for here, rows in zip(places, rows_of, strict=True):
            out[here] = rows
        return out

    # --- within a round --------------------------------------------------------------------------------

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        calls = [
            self._hands.call(w, method, *given) for w, given in zip(self._workers, arguments, strict=True)
        ]
        return self._hands.get(calls)

    def _exchange(self, route: Route | None, links: Links) -> list[Halo]:
        """Have what each shard hears put into its halo.

        A piece is lent and put before the next one is: calls go out in turns, and a worker does its own in
        order, so that few pieces are on the way.  Each waits only for calls that went out before it.
        """
        if route is None:
            return [halo(links, lo, hi, self._edges[-1]) for lo, hi in pairwise(self._edges)]
        heard = self._heard(route, links)
        turns = zip_longest(*(loans(one, self._edges, self._piece) for one in heard))
        for turn in turns:
            for worker, one, loan in zip(self._workers, heard, turn, strict=True):
                if loan is not None:
                    lender = self._workers[loan.lender]
                    rows = self._hands.call(lender, "lend", loan.first, loan.count, loan.rows)
                    self._hands.call(worker, "put", rows, loan.at, len(one.rows))
        return heard

    def _heard(self, route: Route, links: Links) -> list[Halo]:
        """The halos of a route, found once: it is the same object in every round that it is used in."""
        for known, halos in self._halos:
            if known is route:
                return halos
        found = [halo(links, lo, hi, self._edges[-1]) for lo, hi in pairwise(self._edges)]
        self._halos = [*self._halos, (route, found)][-self._routes_kept :]
        return found


class Cluster:
    """Ray's workers: see Hands.  Made by `cluster`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._sizes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        self.address = str(ray.get_runtime_context().gcs_address)
        self.machines, self.processors = len(self._sizes), sum(self._sizes)

    def threads(self, workers: int, asked: int) -> int:
        """Threads of each of `workers`: as asked, 0 is what the machines have for each.

        Raises ConfigError when they have not.
        """
        each = asked or max(1, min(self._sizes) // math.ceil(workers / self.machines))
        if sum(size // each for size in self._sizes) < workers:
            raise ConfigError(
                f"Ray has machines of {self._sizes} processors, and {workers} workers of {each} threads each"
                " do not fit; lower simulation.shards or simulation.threads, or --jobs"
            )
        return each

    def hire(self, kind: type, *arguments: Any, processors: int) -> Any:
        """A worker on the machine that has most to spare."""
        actor = self._ray.remote(kind).options(num_cpus=processors, scheduling_strategy="SPREAD")
        return actor.remote(*arguments)

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Have it called; returns a promise at once."""
        return getattr(worker, method).remote(*arguments)

    def get(self, promises: Sequence[Any]) -> list[Any]:
        """What they became.  Raises P2PFLError, LocalError when a worker died."""
        try:
            return list(self._ray.get(list(promises)))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, P2PFLError):
                raise error.cause from error
            said = f"a Ray worker failed: {error.cause!r}; has it the same release of p2pfl?"
            raise LocalError(said) from error
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise LocalError(f"a Ray worker ended: {reason}; was it out of memory?") from error

    def first(self, promises: Sequence[Any]) -> Any:
        """One that is kept now, whichever comes first."""
        (done, *_), _ = self._ray.wait(list(promises), num_returns=1)
        return done


@contextmanager
def cluster(address: str = "", processors: int = 0) -> Iterator[Cluster]:
    """Ray at `address`, or what RAY_ADDRESS says; "local", or neither, starts it here and ends it again.

    processors: how many to say this machine has, at least, where it is started.
    Raises ConfigError when Ray is not installed, LocalError when it cannot be reached or started.
    """
    # Read when Ray is imported: what is simulated here is told to nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "this needs Ray, which is not installed; pip install 'p2pfl-node[ray]', or leave out --engine ray"
            " and --ray-address"
        ) from error
    if ray.is_initialized():
        yield Cluster(ray)
        return
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        _start(ray, place, max(processors, own_threads()))
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _start(ray: Any, place: str, processors: int) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False}
    here = {"num_cpus": processors, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    starts = _STARTS if place == "local" else 1
    for left in reversed(range(starts)):
        try:
            ray.init(address=place, **quiet, **(here if place == "local" else {}))
        except Exception as error:
            # What Ray raises then is an Exception, no class of its own.
            with contextlib.suppress(Exception):
                ray.shutdown()
            if not left:
                cure = "is the machine busy?" if place == "local" else "does it run, in the same release?"
                raise LocalError(f"Ray at {place} does not answer: {str(error).strip()}; {cure}") from error
        else:
            return
