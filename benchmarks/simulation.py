"""Peer-rounds a second of fused populations, beside the floor that memory sets in the same run.

    python benchmarks/simulation.py                       1,000 and 100,000 peers; about a minute
    python benchmarks/simulation.py --peers 1048576       2^20 peers: 6 GB
    python benchmarks/simulation.py --rivals              beside gossipy and Flower, too: two minutes more
    python benchmarks/simulation.py --shards 1048576      over Ray beside one process, too: 14 GB

The floor of a row is the time of y = a x + z over as many float32 as the population has parameters, with as
many threads: what any round that reads two models and writes one has to wait for.  Times are medians by the
clock; peers/cpu-s are peer-rounds a second of processor time, which other programs disturb less, and so is
the multiple of the floor.  Bytes a peer are what the process grew by.  A peer-round without a common clock
is a tick; it has no floor, because shares lie in no order.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

from p2pfl.simulations.fleet import Fleet
from p2pfl.simulations.fleet_trial import mustered
from p2pfl.simulations.matrix import Gang, Matrix, own_threads
from p2pfl.simulations.scenario import Scenario, load

STATIC = "gossip.topology.kind=exponential"
RANDOM = "gossip.topology={kind='random-regular', degree=4}"
MIXING = ("run.rounds=0", "run.closing_rounds=10000")
MLP = "learner.model={kind='mlp', hidden=[32]}"


@numba.njit(nogil=True, fastmath=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def triad(a, x, z, y, lo, hi):  # type: ignore[no-untyped-def]
    """Y = a x + z of rows lo..hi-1."""
    for i in range(lo, hi):
        one, other, out = x[i], z[i], y[i]
        for j in range(len(out)):
            out[j] = a * one[j] + other[j]


def typical(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The median seconds of several calls but the first: by the clock, and of all threads together."""
    work()
    taken, spent = [], []
    for _ in range(repeats):
        began, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append(time.perf_counter() - began)
        spent.append(time.process_time() - cpu)
    return statistics.median(taken), statistics.median(spent)


def floor_s(n: int, d: int, gang: Gang) -> float:
    """Of one pass that reads two arrays (n, d) and writes a third; at most 1 GB of each is timed."""
    rows = min(n, max(1, 2**28 // d))
    x, z, y = (np.ones((rows, d), np.float32) for _ in range(3))
    _, spent = typical(lambda: gang.each(rows, lambda lo, hi: triad(np.float32(0.5), x, z, y, lo, hi)), 9)
    return spent * n / rows


def resident() -> int:
    """Bytes of this process in memory now."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def scenario(peers: int, *settings: str) -> Scenario:
    """The scenario `million` with other numbers."""
    return load("million", peers=peers, settings=["run.rounds=10000", *settings])


def row(name: str, peers: int, threads: int, *settings: str) -> None:
    """Time rounds of one population and print its line."""
    before = resident()
    fleet, _ = mustered(scenario(peers, f"simulation.threads={threads}", *settings))
    assert isinstance(fleet, Fleet)
    fleet.step()
    grown = (resident() - before) / peers
    assert isinstance(fleet.matrix, Matrix)
    gang, d = fleet.matrix.gang, fleet.d
    # A period of the one-peer graph, because near neighbours are in the cache and far ones are not.
    once, spent = typical(fleet.step, max(5, (peers - 1).bit_length()))
    del fleet
    floor = f"{spent / floor_s(peers, d, gang):.2f}"
    line(name, peers, d, once, peers / once, peers / spent, floor, grown)


def asynchronous(peers: int, threads: int) -> None:
    """Time rounds of a population whose peers have clocks of their own, and print its line."""
    before = resident()
    settings = ["run.closing_rounds=0", f"simulation.threads={threads}"]
    population, _ = mustered(load("asynchronous", peers=peers, rounds=10_000, settings=settings))
    for _ in range(3):
        population.step()
    grown, done = (resident() - before) / peers, population.peer_rounds
    once, spent = typical(population.step, 5)
    done = (population.peer_rounds - done) // 6
    line("logistic, 1 step, asynchronous", peers, 650, once, done / once, done / spent, "", grown)


def line(
    name: str, peers: int, d: int, once: float, wall: float, cpu: float, floor: str, grown: float
) -> None:
    """Print one."""
    print(
        f"{name:<34} {peers:>9,} {d:>6} {once * 1e3:>10.2f} {wall:>12,.0f} {cpu:>12,.0f} {floor:>7}"
        f" {grown:>9,.0f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, nargs="*", default=[1000, 100_000])
    parser.add_argument("--threads", type=int, default=own_threads())
    parser.add_argument("--rivals", action="store_true", help="beside gossipy and Flower as well")
    parser.add_argument("--shards", type=int, default=0, help="so many peers over Ray as well")
    chosen = parser.parse_args()
    print(f"{chosen.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'':<34} {'peers':>9} {'d':>6} {'ms':>10} {'peers/s':>12} {'peers/cpu-s':>12} {'x floor':>7}"
        f" {'B a peer':>9}"
    )
    for peers in chosen.peers:
        row("logistic, 1 step, 1-peer exp", peers, chosen.threads)
        asynchronous(peers, chosen.threads)
        row("mixing alone, 1-peer exp", peers, chosen.threads, *MIXING)
        if peers <= 200_000:
            row("mixing alone, exponential", peers, chosen.threads, STATIC, *MIXING)
            row("mixing alone, 4-regular (edges)", peers, chosen.threads, RANDOM, *MIXING)
            row("MLP 64-32-10, 1 step, 1-peer exp", peers, chosen.threads, MLP)
    here = Path(__file__).parent
    commands = [[sys.executable, str(here / "shards.py"), str(chosen.shards)]] if chosen.shards else []
    if chosen.rivals:
        commands += [[str(here / "with_gossipy.sh")], [str(here / "with_flower.sh")]]
    for command in commands:
        print(f"\n{' '.join(Path(word).name for word in command[-2:])}", flush=True)
        subprocess.run(command, check=False)


if __name__ == "__main__":
    main()
