"""Unequal jobs at unequal workers: what is learned of them while they run, and what it saves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.simulations.balance import Balancer, CostModel, Job


def makespan(jobs: Sequence[Job], seconds: Callable[[int, int], float], workers: int) -> float:
    """When the last of `jobs` ends at workers who ask a Balancer.   seconds: of a job at a worker."""
    balancer = Balancer(jobs, workers)
    running: list[tuple[float, int]] = []
    now, idle, taken = 0.0, set(range(workers)), []
    while True:
        for worker in sorted(idle):
            job = balancer.take(worker, now)
            if job is not None:
                idle.remove(worker)
                taken.append(job)
                heapq.heappush(running, (now + seconds(job, worker), worker))
        if not running:
            assert balancer.is_empty
            assert sorted(taken) == list(range(len(jobs)))
            return now
        now, worker = heapq.heappop(running)
        balancer.end(worker, now)
        idle.add(worker)


def round_robin(count: int, seconds: Callable[[int, int], float], workers: int) -> float:
    return max(sum(seconds(job, w) for job in range(w, count, workers)) for w in range(workers))


def first_come(count: int, seconds: Callable[[int, int], float], workers: int) -> float:
    free = [(0.0, worker) for worker in range(workers)]
    for job in range(count):
        now, worker = heapq.heappop(free)
        heapq.heappush(free, (now + seconds(job, worker), worker))
    return max(now for now, _ in free)


# What differs: the work of a job, seldom told by its sizes, and the speed of a worker.
CASES = {
    "workers 4:1": (1.0, (4.0, 4.0, 1.0, 1.0)),
    "jobs and workers 4:1": (4.0, (4.0, 4.0, 1.0, 1.0)),
    "jobs and eight workers 4:1": (4.0, (4.0,) * 4 + (1.0,) * 4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("are_told", [True, False])
def test_at_speeds_of_four_to_one_the_last_job_ends_a_fifth_earlier_than_by_turns(
    case: str, are_told: bool
) -> None:
    ratio, speeds = CASES[case]
    by_turns, by_order = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        work = np.where(rng.random(40) < 0.5, 1.0, ratio)
        actual = work * rng.lognormal(0.0, 0.1, 40)

        def seconds(
            job: int, worker: int, actual: np.ndarray[tuple[int], np.dtype[np.float64]] = actual
        ) -> float:
            return float(actual[job] / speeds[worker])

        # Either the size tells it, or the kind does, of which nothing is known before.
        jobs = [Job(sizes=(w if are_told else 1.0,), kind="" if are_told else f"case {w}") for w in work]
        took = makespan(jobs, seconds, len(speeds))
        by_turns.append(took / round_robin(40, seconds, len(speeds)))
        by_order.append(took / first_come(40, seconds, len(speeds)))
        assert took < 1.5 * max(actual.sum() / sum(speeds), actual.max() / max(speeds))
    assert max(by_turns) <= 0.8
    assert np.mean(by_order) < 1.0


def test_equal_workers_begin_with_the_longest_jobs() -> None:
    jobs = [Job(sizes=(size,)) for size in (1.0, 1.0, 1.0, 1.0, 4.0)]
    sizes = [job.sizes[0] for job in jobs]
    assert makespan(jobs, lambda job, _: sizes[job], 2) == 4.0
    assert first_come(5, lambda job, _: sizes[job], 2) == 6.0


def test_a_slow_worker_waits_rather_than_hold_the_last_job() -> None:
    balancer = Balancer([Job()] * 4, 2)
    fast, slow = balancer.take(0, 0.0), balancer.take(1, 0.0)
    assert (fast, slow) == (0, 1)
    balancer.end(0, 1.0)
    assert balancer.take(0, 1.0) == 2
    balancer.end(1, 10.0)
    balancer.end(0, 10.0)
    # One is left, which takes one second there and ten here.
    assert balancer.take(1, 10.0) is None
    assert balancer.take(0, 10.0) == 3
    assert balancer.is_empty
    assert balancer.take(1, 10.0) is None


def test_a_cost_is_the_product_of_sizes_until_something_is_seen() -> None:
    model = CostModel([Job(sizes=(2.0, 3.0)), Job(sizes=(4.0, 9.0))], 2)
    seconds = model.seconds()
    assert seconds[1] / seconds[0] == pytest.approx([6.0, 6.0])
    assert seconds[0, 0] == seconds[0, 1]


def test_costs_kinds_and_speeds_are_learned_from_what_has_ended() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.uniform(1, 20, 30)
    kinds = ["plain", "robust"] * 15
    jobs = [Job(sizes=(size,), kind=kind) for size, kind in zip(sizes, kinds, strict=True)]
    # Robust ones take five times as long, and grow faster than their size; worker 1 is a third as fast.
    truth = np.outer(0.2 * sizes**1.3 * np.where(np.arange(30) % 2, 5.0, 1.0), [1.0, 3.0])
    model = CostModel(jobs, 2)
    for job in range(12):
        model.learn(job, job // 2 % 2, float(truth[job, job // 2 % 2]))
    found = model.seconds()[12:] / truth[12:]
    assert 0.8 < found.min() < found.max() < 1.25


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=25),
    st.integers(1, 6),
    st.lists(st.floats(0.01, 100), min_size=6, max_size=6),
)
def test_every_job_is_taken_once_whatever_they_take(
    work: list[float], workers: int, speeds: list[float]
) -> None:
    jobs = [Job(sizes=(1.0,), kind=str(number % 3)) for number in range(len(work))]
    makespan(jobs, lambda job, worker: work[job] / speeds[worker], workers)
