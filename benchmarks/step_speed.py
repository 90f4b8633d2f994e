"""Microseconds of one optimizer step of logistic regression: numpy's own learner beside torch's, one thread.

    python benchmarks/step_speed.py           medians of 7, a few seconds

303 rows of 13 columns, batches of 32: a hospital of the Heart Disease data.  The two take turns.
"""

import statistics
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from p2pfl.learn.data import Dataset
from p2pfl.learn.learner import Learner
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.torch_learner import TorchLearner

STEPS = 500
REPEATS = 7


def numpy_learner(x: np.ndarray, y: np.ndarray) -> Learner:
    """The built-in model."""
    dataset = Dataset(x_train=x, y_train=y, x_test=x, y_test=y, n_classes=2)
    return NumpyLearner(dataset, local_steps=STEPS, batch_size=32)


def torch_learner(x: np.ndarray, y: np.ndarray) -> Learner:
    """The same through torch: a DataLoader over tensors, SGD with momentum."""
    rows = TensorDataset(torch.from_numpy(x), torch.from_numpy(y).float()[:, None])
    return TorchLearner(
        model=torch.nn.Linear(x.shape[1], 1),
        train=DataLoader(rows, batch_size=32, shuffle=True),
        test=DataLoader(rows, batch_size=303),
        loss=torch.nn.functional.binary_cross_entropy_with_logits,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        local_steps=STEPS,
    )


def microseconds(learner: Learner) -> float:
    """Of one step, over a fit of STEPS."""
    began = time.perf_counter()
    learner.fit(learner.parameters(), np.random.default_rng(0))
    return (time.perf_counter() - began) / STEPS * 1e6


def main() -> None:
    """Print both."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(303, 13)).astype(np.float32)
    y = (x @ rng.normal(size=13) > 0).astype(np.int64)
    learners = {"numpy": numpy_learner(x, y), "torch": torch_learner(x, y)}
    taken: dict[str, list[float]] = {name: [] for name in learners}
    for repeat in range(REPEATS + 1):
        for name, learner in learners.items():
            spent = microseconds(learner)
            if repeat:
                taken[name].append(spent)
    for name, values in taken.items():
        print(f"{name}  {statistics.median(values):6.1f} us a step")


if __name__ == "__main__":
    main()
