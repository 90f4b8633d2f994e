from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import LearnerError
from p2pfl.learn.flat import unflatten
from p2pfl.learn.perceptron import Perceptron, initial, layer_schema, logits, mean_loss, probabilities


def _by_autograd(theta: Any, layers: Any, x: Any, y: Any) -> Any:
    """Loss and gradient of the same network in torch, in float64."""
    flat = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    h, start = torch.tensor(x, dtype=torch.float64), 0
    for layer, (fan_in, fan_out) in enumerate(pairwise(layers)):
        W = flat[start : start + fan_in * fan_out].view(fan_out, fan_in)
        b = flat[start + fan_in * fan_out : start + fan_in * fan_out + fan_out]
        h, start = (torch.relu(h) if layer else h) @ W.T + b, start + fan_in * fan_out + fan_out
    if layers[-1] == 1:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            h[:, 0], torch.tensor(y, dtype=torch.float64)
        )
    else:
        loss = torch.nn.functional.cross_entropy(h, torch.tensor(y))
    (gradient,) = torch.autograd.grad(loss, flat)
    return loss.item(), gradient.numpy()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(3, 1), (4, 3), (5, 6, 3), (2, 7, 4, 2), (3, 4, 1)]),
    st.integers(1, 9),
    st.integers(0, 1000),
)
def test_the_gradient_is_that_of_autograd(layers: Any, batch: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = Perceptron(layers, batch)
    net.theta[0] = initial(layers, rng) * 2
    x = rng.normal(size=(batch, layers[0])).astype(np.float32)
    y = rng.integers(max(2, layers[-1]), size=batch)
    (loss,) = net.backward(x[None], y[None])
    expected_loss, expected = _by_autograd(net.theta[0], layers, x, y)
    assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(net.gradient[0], expected, rtol=1e-3, atol=2e-6)
    z = logits(net.theta[0], layers, x)
    assert mean_loss(z, y) == pytest.approx(expected_loss, rel=1e-4, abs=1e-5)


def test_the_gradient_of_a_worked_example() -> None:
    # One row x = (1, 2), zero weights, two classes: softmax is (1/2, 1/2), so dZ = (-1/2, 1/2) for class 0.
    net = Perceptron((2, 2), 1)
    assert net.backward(np.array([[[1, 2]]], np.float32), np.array([[0]]))[0] == pytest.approx(np.log(2))
    tensors = unflatten(net.gradient[0], net.schema)
    assert tensors["layer1.weight"].tolist() == [[-0.5, -1.0], [0.5, 1.0]]
    assert tensors["layer1.bias"].tolist() == [-0.5, 0.5]


def test_sure_mistakes_cost_much_and_stay_finite() -> None:
    for layers, y in (((1, 1), 0), ((1, 2), 0)):
        net = Perceptron(layers, 1)
        net.theta[0, layers[1] - 1] = 1e4
        (loss,) = net.backward(np.array([[[1]]], np.float32), np.array([[y]]))
        assert 80 < loss < 1e5
        assert np.isfinite(net.gradient).all()


def test_first_parameters_have_the_bounds_of_torch() -> None:
    torch.manual_seed(0)
    reference = torch.nn.Linear(50, 400)
    tensors = unflatten(initial((50, 400), np.random.default_rng(0)), layer_schema((50, 400)))
    for name in ("weight", "bias"):
        ours, theirs = tensors[f"layer1.{name}"], getattr(reference, name).detach().numpy()
        assert abs(ours).max() <= 1 / np.sqrt(50)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.1)
        assert ours.shape == theirs.shape


def test_probabilities_sum_to_one_for_one_logit_and_for_many() -> None:
    for z in (np.array([[1000.0], [-1000.0]], np.float32), np.array([[1.0, 2.0, 3.0]], np.float32)):
        p = probabilities(z)
        np.testing.assert_allclose(p.sum(axis=1), 1)
    assert probabilities(np.zeros((1, 1), np.float32)).tolist() == [[0.5, 0.5]]


def test_a_network_without_input_is_refused() -> None:
    with pytest.raises(LearnerError, match="no input or no output"):
        Perceptron((0, 2), 1)


def test_first_weights_by_he_have_his_deviation_and_no_biases() -> None:
    theta = initial((200, 100, 10), np.random.default_rng(0), "he")
    first, bias = theta[:20_000], theta[20_000:20_100]
    assert float(first.std()) == pytest.approx((2 / 200) ** 0.5, rel=0.03)
    assert not bias.any()
    assert float(np.abs(initial((200, 100, 10), np.random.default_rng(0))).max()) <= 0.1
