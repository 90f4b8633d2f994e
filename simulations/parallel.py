"""Trials side by side, each worker one at a time: in processes of this machine, or at Ray's workers.

An order and an answer are a line of JSON (trial_worker.py).  Which worker gets which order is decided as
workers become free, by what trials have taken so far (balance.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import trio

from p2pfl.errors import LocalError

from .balance import Balancer, Job
from .shards import Cluster
from .trial_worker import TrialWorker

__all__ = ["at_ray_workers", "in_processes"]

# What is done with an answer to the order of that number; what it raises ends all.
_Done = Callable[[int, dict[str, Any]], None]

# One read of a worker's answer; a verdict has about 400 bytes a peer.
_READ_BYTES = 1 << 16
# Seconds that a process may take to go once it has closed its end or was killed; it does so at once.
_REAP_S = 10.0


def in_processes(orders: Sequence[str], jobs: Sequence[Job], workers: int, done: _Done) -> None:
    """Have `workers` processes answer all orders.   jobs: how much work each is likely to be."""
    try:
        trio.run(_all, orders, Balancer(jobs, workers), workers, done)
    except BaseExceptionGroup as group:
        raise _first(group) from None


def at_ray_workers(
    cluster: Cluster, orders: Sequence[str], jobs: Sequence[Job], workers: int, done: _Done
) -> None:
    """The same at Ray's workers of one processor each, wherever they are."""
    cluster.threads(workers, 1)
    hired = [cluster.hire(TrialWorker, processors=1) for _ in range(workers)]
    # How long it takes to begin says nothing about trials.
    cluster.get([cluster.call(one, "ready") for one in hired])
    balancer, idle = Balancer(jobs, workers), list(range(workers))
    running: dict[Any, tuple[int, int]] = {}
    while True:
        for worker in list(idle):
            number = balancer.take(worker, time.monotonic())
            if number is not None:
                idle.remove(worker)
                running[cluster.call(hired[worker], "answer", orders[number])] = (number, worker)
        if not running:
            return
        promise = cluster.first(list(running))
        number, worker = running.pop(promise)
        try:
            (answer,) = cluster.get([promise])
        except LocalError as error:
            done(number, {"error": "LocalError", "message": str(error)})
            raise
        balancer.end(worker, time.monotonic())
        idle.append(worker)
        done(number, json.loads(answer))


async def _all(orders: Sequence[str], balancer: Balancer, workers: int, done: _Done) -> None:
    ended = trio.Condition()
    async with trio.open_nursery() as nursery:
        for worker in range(workers):
            nursery.start_soon(_serve, worker, orders, balancer, ended, done)


async def _serve(
    worker: int, orders: Sequence[str], balancer: Balancer, ended: trio.Condition, done: _Done
) -> None:
    """One process, and the orders it takes."""
    # Started from this thread, whose end the kernel takes for its parent's; trio would use one of its pool,
    # which end when idle.  In a session of its own, because Ctrl-C is for us, who then end it.
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pfl.simulations.trial_worker", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    questions = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
    answers = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
    process.stdin.close()
    process.stdout.close()
    try:
        # It says that it is there: how long that takes says nothing about trials.
        await _line(answers)
        while (number := await _next(worker, balancer, ended)) is not None:
            # A process that has ended says so by its answer.
            with contextlib.suppress(trio.BrokenResourceError):
                await questions.send_all(orders[number].encode() + b"\n")
            answer = await _line(answers)
            if answer:
                done(number, json.loads(answer))
            else:
                code = process.wait(_REAP_S)
                said = f"its process ended with {code}; was it out of memory? try fewer --jobs"
                done(number, {"error": "LocalError", "message": said})
            async with ended:
                balancer.end(worker, trio.current_time())
                ended.notify_all()
    finally:
        process.kill()
        questions.close()
        answers.close()
        process.wait(_REAP_S)


async def _next(worker: int, balancer: Balancer, ended: trio.Condition) -> int | None:
    """The order that this worker is to take now; None when there is none left."""
    async with ended:
        while (number := balancer.take(worker, trio.current_time())) is None and not balancer.is_empty:
            await ended.wait()
    return number


async def _line(stream: trio.abc.ReceiveStream) -> bytes:
    """The next answer; empty at the end.  Nothing is read ahead, because one answer follows one order."""
    answer = bytearray()
    while not answer.endswith(b"\n"):
        part = await stream.receive_some(_READ_BYTES)
        if not part:
            return b""
        answer += part
    return bytes(answer)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What one process failed with; the others were cancelled, or failed at the same moment."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
