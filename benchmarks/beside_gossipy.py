"""gossipy's peer-rounds a second beside those of a fused population: logistic regression on 28 x 28 pixels.

    benchmarks/with_gossipy.sh                     an environment of its own, then this

1,000 peers of 16 rows, made-up pixels, 10 classes, one step of SGD with all rows and one exchange with one
peer a round, one thread, processor time.  gossipy's peers push their models to a random peer, which averages
and takes a step; it evaluates one node a round on one row.  What it imports and does not need is stubbed.
"""

from __future__ import annotations

import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

PEERS, ROWS, COLUMNS, CLASSES, ROUNDS = 1000, 16, 784, 10, 3


def rows() -> tuple[Any, Any]:
    """Pixels and labels of all peers."""
    rng = np.random.default_rng(0)
    return rng.random((PEERS * ROWS, COLUMNS), np.float32), rng.integers(CLASSES, size=PEERS * ROWS)


def ours() -> float:
    """Seconds of a round of a fused population."""
    from p2pfl.simulations.fleet_trial import mustered
    from p2pfl.simulations.scenario import load

    x, y = rows()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        np.savez(path, x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
        settings = [
            f'learner.data={{source="npz:{path}"}}',
            "learner.optimizer.lr=0.1",
            "simulation.threads=1",
        ]
        fleet, _ = mustered(load("million", peers=PEERS, settings=settings))
    fleet.step()
    began = time.process_time()
    for _ in range(10 * ROUNDS):
        fleet.step()
    return (time.process_time() - began) / (10 * ROUNDS)


def theirs() -> float:
    """Seconds of a round of gossipy."""
    for name in ("torchvision", "matplotlib", "matplotlib.pyplot"):
        sys.modules.setdefault(name, types.ModuleType(name))
    import torch
    from gossipy.core import AntiEntropyProtocol, CreateModelMode, StaticP2PNetwork
    from gossipy.data import DataDispatcher
    from gossipy.data.handler import ClassificationDataHandler
    from gossipy.model.handler import TorchModelHandler
    from gossipy.model.nn import LogisticRegression
    from gossipy.node import GossipNode
    from gossipy.simul import GossipSimulator

    torch.set_num_threads(1)
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
    nodes = GossipNode.generate(
        data_dispatcher=data, p2p_net=StaticP2PNetwork(PEERS), model_proto=handler, round_len=100, sync=True
    )
    simulator = GossipSimulator(
        nodes, data, delta=100, protocol=AntiEntropyProtocol.PUSH, sampling_eval=1 / PEERS
    )
    simulator.init_nodes()
    began = time.process_time()
    # Its last line closes a progress bar that has no such method.
    try:
        simulator.start(n_rounds=ROUNDS)
    except AttributeError as error:
        print(f"gossipy ended with: {error}", file=sys.stderr)
    return (time.process_time() - began) / ROUNDS


def main() -> None:
    """Print both and their ratio."""
    slow, fast = theirs(), ours()
    print(f"gossipy  {slow:8.3f} s a round  {PEERS / slow:10,.0f} peer-rounds a second")
    print(f"p2pfl    {fast:8.5f} s a round  {PEERS / fast:10,.0f} peer-rounds a second")
    print(f"ratio    {slow / fast:8.1f}")


if __name__ == "__main__":
    main()
