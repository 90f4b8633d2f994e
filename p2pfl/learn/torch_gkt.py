"""FedGKT's built-in learner: an edge on a data set, and the hub's model for edges of such images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset
from p2pfl.learn.options import OptimizerOptions, Standardise
from p2pfl.learn.schedule import rate_factor
from p2pfl.learn.selection import Image
from p2pfl.learn.split_learner import SplitLearner
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_models import descent, image_of, network_learner
from p2pfl.learn.torch_split import HEAD, edge_network, hub_network

__all__ = ["gkt_learner"]


def gkt_learner(
    dataset: Dataset,
    *,
    optimizer: OptimizerOptions | None = None,
    local_steps: int | None = None,
    batch_size: int = 32,
    share: tuple[str, ...] = ("*",),
    standardise: Standardise = "none",
    seed: int = 0,
    capacity: float = 0.0,
    hub_epochs: int = 3,
    hub_batch_size: int = 64,
    hub_optimizer: OptimizerOptions | None = None,
    per_class: bool = False,
) -> SplitLearner:
    """A SplitLearner of the models of torch_split.py.   seed: the run's, so that all sites start equal."""
    if standardise != "none":
        raise ConfigError(
            f'learner.standardise = "{standardise}" is not for model kind "gkt", whose edges must see an'
            " image alike; use learner.data.scale"
        )
    options = optimizer or OptimizerOptions()
    image = image_of(dataset)

    above = hub_optimizer or options
    edge = network_learner(
        _seeded(edge_network, image, dataset.n_classes, seed),
        dataset,
        optimizer=options,
        local_steps=local_steps,
        batch_size=batch_size,
        share=share,
        embedding=HEAD,
        per_class=per_class,
    )

    def hub() -> TorchLearner:
        return TorchLearner(
            _seeded(hub_network, image, dataset.n_classes, seed),
            [],
            [],
            nn.functional.cross_entropy,
            descent(above),
            reset_optimizer=above.reset,
            schedule=partial(rate_factor, above),
        )

    return SplitLearner(
        edge,
        hub,
        capacity=capacity,
        epochs=hub_epochs,
        batch_size=hub_batch_size,
        classes=dataset.classes,
    )


def _seeded(make: Callable[[Image, int], nn.Module], image: Image, n_classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(image, n_classes)
