"""Seconds of a round in which 100 of 1,000 train, in Flower's simulation and here: an MLP of 784-64-10.

    benchmarks/with_flower.sh                      an environment of Flower's own, then this

50,890 parameters, 60 made-up rows a client, one epoch of three steps of SGD.  Flower has its Ray back end,
one processor for each client and all of them in use, and clients that are numpy alone; rows lie in a file
that every process maps.  Its first round does not count, because processes start in it.  Ours is a pool whose
active peers mix on an exponential graph.  By the clock, and as processor time of all processes that belong.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

PEERS, ACTIVE, ROWS, ROUNDS = 1000, 100, 60, 5
COLUMNS, HIDDEN, CLASSES, BATCH, RATE = 784, 64, 10, 20, 0.1
# All rows there are: clients share them.
ALL = 6000
FLOWER = Path("build/flower/bin/python")


def write_rows(folder: Path) -> None:
    """Pixels and labels of all clients, as files."""
    rng = np.random.default_rng(0)
    x, y = rng.random((ALL, COLUMNS), np.float32), rng.integers(CLASSES, size=ALL)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.savez(folder / "rows.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])


def processor_s() -> float:
    """Processor time of this process and of all that it began, and they, as far as they live."""
    spent: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        spent[int(path.parent.name)] = int(words[1]), sum(map(int, words[11:15]))
    ours = {os.getpid()}
    while more := {pid for pid, (parent, _) in spent.items() if parent in ours} - ours:
        ours |= more
    return sum(spent[pid][1] for pid in ours if pid in spent) / os.sysconf("SC_CLK_TCK")


def typical(marks: list[tuple[float, float]]) -> tuple[float, float]:
    """The median round but the first: seconds by the clock, and of processors on average."""
    walls = [b[0] - a[0] for a, b in pairwise(marks[1:])]
    return statistics.median(walls), (marks[-1][1] - marks[1][1]) / len(walls)


def ours(folder: Path) -> tuple[float, float]:
    """Of a pool of which few are active."""
    from p2pfl.simulations.fleet_trial import mustered
    from p2pfl.simulations.scenario import load

    settings = [
        f'learner.data={{source="npz:{folder / "rows.npz"}"}}',
        f"learner.model={{kind='mlp', hidden=[{HIDDEN}]}}",
        f"learner.local_steps={ROWS // BATCH}",
        f"learner.batch_size={BATCH}",
        f"learner.optimizer={{kind='sgd', lr={RATE}, momentum=0.0}}",
        f"simulation.active={ACTIVE}",
        f"simulation.partition={{kind='drawn', rows={ROWS}, classes=2}}",
    ]
    pool, _ = mustered(load("lazy-million", peers=PEERS, settings=settings))
    marks = [(time.perf_counter(), time.process_time())]
    for _ in range(10 * ROUNDS):
        pool.step()
        marks.append((time.perf_counter(), time.process_time()))
    return typical(marks)


def fit(theta: list[Any], x: Any, y: Any) -> list[Any]:
    """One epoch of a two-layer perceptron in numpy."""
    W, b, V, c = (array.copy() for array in theta)
    order = np.random.default_rng().permutation(len(y))
    for at in range(0, len(y), BATCH):
        a, labels = x[order[at : at + BATCH]], y[order[at : at + BATCH]]
        h = np.maximum(a @ W.T + b, 0)
        z = h @ V.T + c
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(labels)), labels] -= 1
        p /= len(labels)
        dh = (p @ V) * (h > 0)
        V -= RATE * p.T @ h
        c -= RATE * p.sum(axis=0)
        W -= RATE * dh.T @ a
        b -= RATE * dh.sum(axis=0)
    return [W, b, V, c]


def flower(folder: Path) -> tuple[float, float]:
    """Of Flower; in its own environment."""
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    marks: list[tuple[float, float]] = []

    class Timed(FedAvg):
        """FedAvg that looks at the clock as a round begins."""

        def configure_fit(self, *args: Any, **named: Any) -> Any:
            marks.append((time.perf_counter(), processor_s()))
            return super().configure_fit(*args, **named)

    class Client(NumPyClient):
        """Sixty rows."""

        def __init__(self, number: int) -> None:
            first = number * ROWS % ALL
            self.x = np.load(folder / "x.npy", mmap_mode="r")[first : first + ROWS]
            self.y = np.load(folder / "y.npy", mmap_mode="r")[first : first + ROWS]

        def fit(self, parameters: list[Any], config: Any) -> Any:  # noqa: ARG002, the interface
            return fit(parameters, self.x, self.y), len(self.y), {}

    rng = np.random.default_rng(0)
    shapes = ((HIDDEN, COLUMNS), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,))
    theta = [rng.normal(0, 0.05, shape).astype(np.float32) for shape in shapes]

    def server(_: Any) -> Any:
        strategy = Timed(
            fraction_fit=ACTIVE / PEERS,
            fraction_evaluate=0.0,
            min_available_clients=PEERS,
            initial_parameters=ndarrays_to_parameters(theta),
        )
        # One more, whose beginning is the last one's end.
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS + 1))

    run_simulation(
        server_app=ServerApp(server_fn=server),
        client_app=ClientApp(client_fn=lambda c: Client(int(c.node_config["partition-id"])).to_client()),
        num_supernodes=PEERS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return typical(marks)


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flower", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.flower is not None:
        print(json.dumps(flower(chosen.flower)))
        return
    if not FLOWER.exists():
        print("Flower is not there, so nothing stands beside; benchmarks/with_flower.sh installs it")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder))
        command = [str(FLOWER), __file__, "--flower", folder]
        alone = {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        said = subprocess.run(
            command,
            env=os.environ | alone,
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode:
            sys.exit(f"Flower ended with {said.returncode}: {said.stderr[-2000:]}")
        slow = json.loads(said.stdout.splitlines()[-1])
        fast = ours(Path(folder))
    print(f"{ACTIVE} of {PEERS:,} a round, load {os.getloadavg()[0]:.1f}   by the clock   processor time")
    for name, (wall, spent) in (("Flower", slow), ("p2pfl", fast)):
        print(f"{name:<32} {wall:>11.4f} s {spent:>14.4f} s")
    print(f"{'ratio':<32} {slow[0] / fast[0]:>11.1f}   {slow[1] / fast[1]:>14.1f}")


if __name__ == "__main__":
    main()
