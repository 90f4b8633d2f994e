"""How fast the world engine is: whole peers of tiny models, so that all the time is its own and theirs.

    python benchmarks/world.py                       32 peers, 40 rounds, best of 5
    python benchmarks/world.py --peers 16 --profile  where the time goes

An event is one thing that a peer hears: a message, the end of a fit, a deadline.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from tiny_learner import stepwise
from worlds import agreement, tiny_world

from p2pfl.net.link_model import LinkModel
from p2pfl.simulations.world import World

# Name, fit of each fourth peer, deadline in seconds, link.
CASES: Mapping[str, tuple[float, float, LinkModel]] = {
    "perfect network": (1.0, 60.0, LinkModel(latency_s=(0.01, 0.01))),
    "stragglers, deadline": (4.0, 1.0, LinkModel(latency_s=(0.01, 0.01))),
    "a tenth lost, latency": (1.0, 2.0, LinkModel(latency_s=(0.01, 0.3), loss=0.1)),
}


def world_of(case: str, peers: int, rounds: int) -> World:
    """A world before anything has happened."""
    slow_s, deadline_s, link = CASES[case]
    spec = agreement(
        peers,
        rounds=rounds,
        deadline_s=deadline_s,
        evaluate_every=rounds,
        learner={"local_steps": 4},
        gossip={"topology": {"kind": "exponential"}},
    )
    fits = [slow_s if i % 4 == 3 else 1.0 for i in range(peers)]
    return tiny_world(peers, spec=spec, factory=stepwise, fit_s=fits, link=link, inline_bytes=16 * 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print the costliest functions instead")
    chosen = parser.parse_args()
    print(f"{chosen.peers} peers, {chosen.rounds} rounds, processor time, best of {chosen.repeats}")
    print(f"{'case':24}{'events':>10}{'events/s':>12}{'us/event':>10}{'peer-rounds/s':>16}")
    for case in CASES:
        if chosen.profile:
            world = world_of(case, chosen.peers, chosen.rounds)
            with cProfile.Profile() as profile:
                world.run(until_s=100_000)
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
            continue
        took = []
        for _ in range(chosen.repeats):
            world = world_of(case, chosen.peers, chosen.rounds)
            began = time.process_time()
            ended = world.run(until_s=100_000)
            took.append(time.process_time() - began)
            assert ended
        best, events = min(took), world.events
        rate = chosen.peers * chosen.rounds / best
        print(f"{case:24}{events:>10,}{events / best:>12,.0f}{1e6 * best / events:>10.1f}{rate:>16,.0f}")


if __name__ == "__main__":
    main()
