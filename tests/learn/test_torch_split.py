from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from p2pfl.learn.cost import cost_of
from p2pfl.learn.data import load
from p2pfl.learn.distill import log_softmax
from p2pfl.learn.options import OptimizerOptions
from p2pfl.learn.schedule import rate_factor
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_models import TensorBatches
from p2pfl.learn.torch_split import HEAD, edge_network, hidden_shape, hub_network

DIGIT = (1, 8, 8)
EDGES, ROWS, ROUNDS = 4, 60, 8


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("sklearn:digits")


def _rng(*seed: int) -> Any:
    return np.random.default_rng(seed)


def _learner(network: Any, x: Any, y: Any, test: Any, **options: Any) -> Any:
    def batches(shuffle: bool, x: Any, y: Any) -> Any:
        return TensorBatches(torch.from_numpy(x.copy()), torch.from_numpy(y.copy()), 16, shuffle=shuffle)

    return TorchLearner(
        network,
        batches(True, x, y),
        batches(False, *test),
        nn.functional.cross_entropy,
        lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
        schedule=partial(rate_factor, OptimizerOptions(schedule="cosine", final=0.0)),
        **options,
    )


def _softmax(z: Any) -> Any:
    return np.exp(log_softmax(z))


def test_the_models_have_the_sizes_they_are_said_to_have() -> None:
    mnist = (1, 14, 14)
    assert hidden_shape(mnist) == (16, 7, 7)
    assert cost_of(edge_network(mnist, 10), (196,)).parameters == 9_690
    assert cost_of(hub_network(mnist, 10), (16 * 49,)).parameters == 691_658


def test_features_are_what_the_head_and_the_hub_take(digits: Any) -> None:
    torch.manual_seed(0)
    network = edge_network(DIGIT, 10)
    rows = digits.x_train[:40], digits.y_train[:40]
    edge = _learner(network, *rows, rows, embedding=HEAD)
    theta = edge.fit(edge.parameters(), _rng(0)).parameters
    H = edge.features(theta, digits.x_test)
    assert H.shape == (len(digits.x_test), 16 * 4 * 4)
    # In eval mode: the rows that came along do not matter.
    np.testing.assert_allclose(edge.features(theta, digits.x_test[:3]), H[:3], atol=1e-6)
    head: Any = network.get_submodule(HEAD)
    with torch.no_grad():
        z = head(torch.from_numpy(H).reshape(-1, *hidden_shape(DIGIT))).numpy()
    np.testing.assert_allclose(z, edge.answer(theta, digits.x_test), atol=1e-4)


def _exchange(digits: Any, *, shuffled: bool = False) -> tuple[float, float, float]:
    """Mean accuracies after FedGKT of a few rounds: an edge alone, an edge's head, hub and edge together.

    shuffled: each edge takes the hub's answers as those of its samples in another order.
    """
    torch.manual_seed(0)
    first, above = edge_network(DIGIT, 10).state_dict(), hub_network(DIGIT, 10)
    test = digits.x_test, digits.y_test
    order = _rng(0).permutation(len(digits.x_train))
    hub = _learner(above, np.zeros((16, 256), np.float32), np.zeros(16, np.int64), test)
    w, rows = hub.parameters(), []
    edges: list[Any] = []
    alone: list[Any] = []
    for i in range(EDGES):
        own = order[i * ROWS : (i + 1) * ROWS]
        rows.append((digits.x_train[own], digits.y_train[own]))
        for kind in (edges, alone):
            network = edge_network(DIGIT, 10)
            network.load_state_dict(first)
            kind.append(_learner(network, *rows[-1], test, embedding=HEAD, local_steps=16))
    thetas = [edge.parameters() for edge in edges]
    singles = [edge.parameters() for edge in alone]
    answers: list[Any] = [None] * EDGES
    for round_ in range(ROUNDS):
        for learner in (hub, *edges, *alone):
            learner.progress = lambda share=round_ / ROUNDS: share
        for i, (edge, (x, y)) in enumerate(zip(edges, rows, strict=True)):
            singles[i] = alone[i].fit(singles[i], _rng(1, i, round_)).parameters
            lesson: Any = {"epochs": 4, "batch": 16, "labels": y}
            if answers[i] is None:
                thetas[i] = edge.fit(thetas[i], _rng(2, i, round_)).parameters
            else:
                thetas[i] = edge.distill(thetas[i], x, answers[i], _rng(2, i, round_), **lesson).parameters
        H = np.concatenate([e.features(t, x) for e, t, (x, _) in zip(edges, thetas, rows, strict=True)])
        z = np.concatenate([e.answer(t, x) for e, t, (x, _) in zip(edges, thetas, rows, strict=True)])
        y = np.concatenate([y for _, y in rows])
        w = hub.distill(w, H, _softmax(z), _rng(3, round_), epochs=3, batch=32, labels=y).parameters
        answers = np.split(_softmax(hub.answer(w, H)), EDGES)
        if shuffled:
            answers = [_rng(4, round_).permutation(answer) for answer in answers]
    composite = [
        np.mean(hub.answer(w, edge.features(theta, test[0])).argmax(axis=1) == test[1])
        for edge, theta in zip(edges, thetas, strict=True)
    ]
    measured = (
        [edge.evaluate(theta)["accuracy"] for edge, theta in zip(kind, found, strict=True)]
        for kind, found in ((alone, singles), (edges, thetas))
    )
    without, heads = (float(np.mean(accuracies)) for accuracies in measured)
    return without, heads, float(np.mean(composite))


def test_hub_and_edge_together_know_more_than_an_edge_alone(digits: Any) -> None:
    alone, head, together = _exchange(digits)
    assert together > alone + 0.08
    assert head > _exchange(digits, shuffled=True)[1] + 0.04
