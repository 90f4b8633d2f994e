"""gossipy's peer-rounds a second beside those of fused populations: logistic regression on 28 x 28 pixels.

    benchmarks/with_gossipy.sh                     an environment of its own, then this

1,000 peers of 16 rows, made-up pixels, 10 classes, one step of SGD with all rows and one exchange with one
peer a round.  gossipy's peers push their models to a random peer, which averages and takes a step; it
evaluates one node a round on one row.  Synchronous: its nodes have a moment in each round, ours are fused
rounds of a one-peer exponential graph.  Asynchronous: its nodes have periods of their own, ours are those of
the scenario `asynchronous`; on both sides a share takes 20 to 200 ms of a round of one second and a tenth is
lost.  A peer-round is a step.  Rounds of all take turns, medians count, by the clock and as processor time.
gossipy has one thread, which is its best here.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PEERS, ROWS, COLUMNS, CLASSES = 1000, 16, 784, 10
# How often each takes its turn, and rounds of ours in one.
TURNS, OURS = 5, 10
# Steps of gossipy's clock in a round.
STEPS = 100


def rows() -> tuple[Any, Any]:
    """Pixels and labels of all peers."""
    rng = np.random.default_rng(0)
    return rng.random((PEERS * ROWS, COLUMNS), np.float32), rng.integers(CLASSES, size=PEERS * ROWS)


def ours(scenario: str, threads: int) -> Callable[[], int]:
    """Some rounds of a fused population, which return how many peer-rounds they were."""
    from p2pfl.simulations.fleet_trial import mustered
    from p2pfl.simulations.scenario import load

    x, y = rows()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        np.savez(path, x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
        settings = [
            f'learner.data={{source="npz:{path}"}}',
            "learner.optimizer.lr=0.1",
            f"simulation.threads={threads}",
        ]
        population, _ = mustered(load(scenario, peers=PEERS, rounds=10_000, settings=settings))

    def some() -> int:
        before = population.peer_rounds
        for _ in range(OURS):
            population.step()
        return population.peer_rounds - before

    some()
    return some


def theirs(*, sync: bool) -> Callable[[], int]:
    """Two rounds of gossipy."""
    for name in ("torchvision", "matplotlib", "matplotlib.pyplot"):
        sys.modules.setdefault(name, types.ModuleType(name))
    import torch
    from gossipy.core import (
        AntiEntropyProtocol,
        ConstantDelay,
        CreateModelMode,
        StaticP2PNetwork,
        UniformDelay,
    )
    from gossipy.data import DataDispatcher
    from gossipy.data.handler import ClassificationDataHandler
    from gossipy.model.handler import TorchModelHandler
    from gossipy.model.nn import LogisticRegression
    from gossipy.node import GossipNode
    from gossipy.simul import GossipSimulator

    torch.set_num_threads(1)
    steps = 0

    class Node(GossipNode):  # type: ignore[misc, unused-ignore]
        """One that is counted when it merges and steps."""

        def receive(self, t: int, msg: Any) -> Any:
            nonlocal steps
            steps += 1
            return super().receive(t, msg)

    x, y = (torch.from_numpy(array) for array in rows())
    data = DataDispatcher(
        ClassificationDataHandler(x, y, x[:1], y[:1]), n=PEERS, eval_on_user=False, auto_assign=True
    )
    handler = TorchModelHandler(
        net=LogisticRegression(COLUMNS, CLASSES),
        optimizer=torch.optim.SGD,
        optimizer_params={"lr": 0.1},
        criterion=torch.nn.CrossEntropyLoss(),
        batch_size=ROWS,
        create_model_mode=CreateModelMode.MERGE_UPDATE,
    )
    nodes = Node.generate(
        data_dispatcher=data,
        p2p_net=StaticP2PNetwork(PEERS),
        model_proto=handler,
        round_len=STEPS,
        sync=sync,
    )
    simulator = GossipSimulator(
        nodes,
        data,
        delta=STEPS,
        protocol=AntiEntropyProtocol.PUSH,
        sampling_eval=1 / PEERS,
        delay=ConstantDelay(0) if sync else UniformDelay(STEPS // 50, STEPS // 5),
        drop_prob=0.0 if sync else 0.1,
    )
    simulator.init_nodes()

    def two() -> int:
        before = steps
        # Its last line closes a progress bar that has no such method.
        try:
            simulator.start(n_rounds=2)
        except AttributeError as error:
            if "close" not in str(error):
                raise
        return steps - before

    return two


def main() -> None:
    """Print the table."""
    cores = len(os.sched_getaffinity(0))
    for title, scenario, sync in (("synchronous", "million", True), ("asynchronous", "asynchronous", False)):
        runs = {
            "gossipy": theirs(sync=sync),
            "p2pfl, 1 thread": ours(scenario, 1),
            f"p2pfl, {cores} threads": ours(scenario, cores),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(TURNS):
            for name, run in runs.items():
                began, cpu = time.perf_counter(), time.process_time()
                done = run()
                rates[name].append((done / (time.perf_counter() - began), done / (time.process_time() - cpu)))
        print(
            f"{title + f', load {os.getloadavg()[0]:.1f}':<28}{'by the clock':>14}{'x gossipy':>11}"
            f"{'processor':>14}{'x gossipy':>11}    (peer-rounds a second)"
        )
        least = [statistics.median(rate[k] for rate in rates["gossipy"]) for k in (0, 1)]
        for name, found in rates.items():
            wall, spent = (statistics.median(rate[k] for rate in found) for k in (0, 1))
            print(
                f"{name:<28}{wall:>14,.0f}{wall / least[0]:>11.1f}{spent:>14,.0f}{spent / least[1]:>11.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
