"""Rounds of a large fused population over Ray workers beside one process: python benchmarks/shards.py [PEERS]

Rounds of both alternate, so that other work on the machine slows them alike, and the first, which touch
their memory for the first time, do not count.  One process has a thread for each processor; two workers share
the processors.  The graph is one-peer exponential, whose shifts cross shards by up to half of all peers; the
model softmax regression on digits, one step of 16 rows.  A million peers take 14 GB.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from p2pfl.simulations import shards
from p2pfl.simulations.fleet_trial import mustered
from p2pfl.simulations.scenario import load

WORKERS = 2


def main(peers: int) -> None:
    """Print seconds a round and the ratio of the medians."""
    split = load("million", peers=peers, settings=[f"simulation.shards={WORKERS}"])
    with shards.cluster("local") as hands:
        populations = {
            "one process": mustered(split)[0],
            f"{WORKERS} workers": mustered(split, hands=hands)[0],
        }
        taken: dict[str, list[float]] = {name: [] for name in populations}
        period = (peers - 1).bit_length()
        for number in range(2 + period):
            for name, population in populations.items():
                began = time.perf_counter()
                population.step()
                if number >= 2:
                    taken[name].append(time.perf_counter() - began)
        some = np.arange(0, peers, max(1, peers // 1000))
        one, two = populations.values()
        assert np.array_equal(one.models(some), two.models(some))
    for name, seconds in taken.items():
        print(
            f"{name:<12} {statistics.mean(seconds):7.3f} s a round, median {statistics.median(seconds):.3f}, "
            f"{peers / statistics.mean(seconds):12,.0f} peer-rounds/s"
        )
    one_s, two_s = (statistics.mean(seconds) for seconds in taken.values())
    print(f"workers reach {one_s / two_s:.0%} of one process over a period of {period} rounds; equal bits")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2**20)
