"""The built-in models in torch: the convolutional network, and the others where Opacus is to train them."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from math import isqrt, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2pfl.errors import ConfigError
from p2pfl.learn.batches import batches
from p2pfl.learn.data import Dataset, rows_meaning
from p2pfl.learn.metrics import by_class
from p2pfl.learn.options import ModelOptions, OptimizerOptions, Standardise
from p2pfl.learn.schedule import rate_factor
from p2pfl.learn.selection import Image
from p2pfl.learn.standardise import Rows
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_optimizer import MakeOptimizer

__all__ = [
    "TensorBatches",
    "cnn",
    "descent",
    "image_of",
    "module_learner",
    "network_learner",
    "perceptron",
]

# Test rows through the network at once: 512 MNIST images keep the first layer's maps at 26 MB.
_TEST_BATCH = 512


class TensorBatches:
    """Batches of rows held in memory: a DataLoader without a Python call a row.

    x: (n, k), y: (n,).   With `shuffle` each pass is a new order from `generator`, every batch full, the last
    one filled up from the next order; without it rows come in order and the last batch is short.
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, *, shuffle: bool) -> None:
        self.dataset = torch.utils.data.TensorDataset(x, y)
        self.generator = torch.Generator()
        self._x, self._y = x, y
        self.batch_size, self._shuffle = batch_size, shuffle

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, targets) of one pass."""
        if not self._shuffle:
            for start in range(0, len(self._y), self.batch_size):
                where = slice(start, start + self.batch_size)
                yield self._x[where], self._y[where]
            return
        seed = int(torch.randint(2**62, (), generator=self.generator))
        for rows in batches(len(self._y), self.batch_size, None, np.random.default_rng(seed)):
            chosen = torch.from_numpy(rows)
            yield self._x[chosen], self._y[chosen]


def image_of(dataset: Dataset) -> Image:
    """(channels, height, width) of a row: as the source says, or one square channel.  Raises ConfigError."""
    k = dataset.x_train.shape[1]
    image = dataset.image or (1, isqrt(k), isqrt(k))
    if prod(image) != k or min(image[1:]) < 4:
        raise ConfigError(
            f'model kind "cnn" needs images of 4 x 4 or more, and {k} features are none;'
            ' use "mlp", or an npz source with x of shape (n, channels, height, width)'
        )
    return image


def cnn(image: tuple[int, int, int], n_classes: int, channels: tuple[int, int] = (16, 32)) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with ReLU and 2 x 2 max-pooling, then a linear layer.

    Input: (n, k) rows of flattened images.   Output: (n, n_classes) logits.
    Source: LeCun et al. 1998, Proceedings of the IEEE 86(11), section II; with ReLU and without the hidden
    linear layers.
    """
    c, height, width = image
    first, second = channels
    return nn.Sequential(
        nn.Unflatten(1, image),
        nn.Conv2d(c, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), n_classes),
    )


def perceptron(layers: tuple[int, ...]) -> nn.Sequential:
    """A ReLU network of layers (k, hidden..., C), with the names of parameters that perceptron.py has."""
    parts: dict[str, nn.Module] = {}
    for number, (fan_in, fan_out) in enumerate(pairwise(layers), start=1):
        if number > 1:
            parts[f"relu{number - 1}"] = nn.ReLU()
        parts[f"layer{number}"] = nn.Linear(fan_in, fan_out)
    return nn.Sequential(OrderedDict(parts))


def module_learner(
    dataset: Dataset,
    *,
    model: ModelOptions | None = None,
    optimizer: OptimizerOptions | None = None,
    local_steps: int | None = None,
    batch_size: int = 32,
    share: tuple[str, ...] = ("*",),
    standardise: Standardise = "none",
    seed: int = 0,
    per_class: bool = False,
) -> TorchLearner:
    """A TorchLearner of a built-in model on a Dataset.   seed: the run's, so that all sites start equal.

    Two classes have two outputs here, also in `logistic`.
    """
    model = model or ModelOptions(kind="cnn")
    hidden = model.hidden if model.kind == "mlp" else ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.kind == "cnn":
            network = cnn(image_of(dataset), dataset.n_classes, model.channels)
        else:
            network = perceptron((dataset.x_train.shape[1], *hidden, dataset.n_classes))
    return network_learner(
        network,
        dataset,
        optimizer=optimizer or OptimizerOptions(),
        local_steps=local_steps,
        batch_size=batch_size,
        share=share,
        standardise=standardise,
        per_class=per_class,
    )


def network_learner(
    network: nn.Module,
    dataset: Dataset,
    *,
    optimizer: OptimizerOptions,
    local_steps: int | None,
    batch_size: int,
    share: tuple[str, ...],
    standardise: Standardise = "none",
    embedding: str | None = None,
    per_class: bool = False,
) -> TorchLearner:
    """A TorchLearner of `network`, from rows (n, k) to logits, on a Dataset.   embedding: as there.

    per_class: measure the accuracy of each class, too.
    """

    def more(outputs: Tensor, targets: Tensor) -> dict[str, float]:
        found = outputs.argmax(dim=1).numpy()
        return by_class(targets.numpy(), found, dataset.y_train, dataset.n_classes)

    rows = Rows(dataset.x_train, dataset.x_test, standardise, dataset.features)
    return TorchLearner(
        network,
        TensorBatches(_tensor(rows.x_train), _tensor(dataset.y_train), batch_size, shuffle=True),
        TensorBatches(_tensor(rows.x_test), _tensor(dataset.y_test), _TEST_BATCH, shuffle=False),
        nn.functional.cross_entropy,
        descent(optimizer),
        share=share,
        local_steps=local_steps,
        reset_optimizer=optimizer.reset,
        schedule=partial(rate_factor, optimizer),
        rows=rows,
        schema_hash=lambda own: hashlib.sha256(own + rows_meaning(dataset)).digest(),
        embedding=embedding,
        metrics=more if per_class else None,
    )


def descent(options: OptimizerOptions) -> MakeOptimizer:
    """Makes torch's SGD as `options` say, at the rate before any schedule."""
    return partial(
        torch.optim.SGD, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )


def _tensor(array: NDArray[np.float32] | NDArray[np.int64]) -> Tensor:
    """The same memory as a tensor, so that standardised rows show; a copy where it is read-only."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
