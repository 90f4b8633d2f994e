"""When the last trial ends if trials are balanced, in virtual time: python benchmarks/balance.py

Forty trials, half of them four times as much work, at workers of which half are four times as fast, under 20
seeds; beside the balancer, which learns both while they run (simulations/balance.py), trials dealt by turns,
and trials taken in their order by whoever is free.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from p2pfl.simulations.balance import Balancer, Job

Seconds = NDArray[np.float64]
SEEDS, TRIALS = 20, 40
CASES: dict[str, tuple[float, tuple[float, ...]]] = {
    "trials 4:1, equal workers": (4.0, (1.0,) * 4),
    "equal trials, workers 4:1": (1.0, (4.0, 4.0, 1.0, 1.0)),
    "both": (4.0, (4.0, 4.0, 1.0, 1.0)),
    "both, eight workers": (4.0, (4.0,) * 4 + (1.0,) * 4),
}


def balanced(seconds: Seconds, kinds: Sequence[str]) -> float:
    """seconds: of each trial at each worker, (J, W).   kinds: what is known of the trials."""
    workers = seconds.shape[1]
    balancer = Balancer([Job(kind=kind) for kind in kinds], workers)
    now, running, idle = 0.0, [], set(range(workers))
    while True:
        for worker in sorted(idle):
            job = balancer.take(worker, now)
            if job is not None:
                idle.remove(worker)
                heapq.heappush(running, (now + float(seconds[job, worker]), worker))
        if not running:
            return now
        now, worker = heapq.heappop(running)
        balancer.end(worker, now)
        idle.add(worker)


def by_turns(seconds: Seconds, _: Sequence[str]) -> float:
    """Trial i at worker i mod W."""
    workers = seconds.shape[1]
    return max(float(seconds[worker::workers, worker].sum()) for worker in range(workers))


def first_come(seconds: Seconds, _: Sequence[str]) -> float:
    """The next trial at whoever is free."""
    free = [(0.0, worker) for worker in range(seconds.shape[1])]
    for row in seconds:
        now, worker = heapq.heappop(free)
        heapq.heappush(free, (now + float(row[worker]), worker))
    return max(now for now, _ in free)


def main() -> None:
    """Print a table."""
    ways: dict[str, Callable[[Seconds, Sequence[str]], float]] = {
        "by turns": by_turns,
        "first come": first_come,
        "balanced": balanced,
    }
    print(f"{'':<28}" + "".join(f"{way:>12}" for way in ways) + "    (the last trial's end, by turns = 1)")
    for name, (ratio, speeds) in CASES.items():
        ends: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            work = np.where(rng.random(TRIALS) < 0.5, 1.0, ratio)
            seconds = np.outer(work * rng.lognormal(0.0, 0.1, TRIALS), 1 / np.array(speeds))
            for way, run in ways.items():
                ends[way].append(run(seconds, [f"{w:g}" for w in work]))
        means = {way: np.mean(np.divide(ends[way], ends["by turns"])) for way in ways}
        print(f"{name:<28}" + "".join(f"{mean:12.3f}" for mean in means.values()))


if __name__ == "__main__":
    main()
