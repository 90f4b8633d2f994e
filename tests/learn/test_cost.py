from typing import Any

import pytest
import torch
from torch import nn

from p2pfl.errors import LearnerError
from p2pfl.learn.cost import Cost, Meter, cost_of, metered
from p2pfl.learn.torch_resnets import STEM_CHANNELS, resnet, stages, stem

CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    ("depths", "parameters", "multiply_adds"),
    [((2,), 10_586, 9.62e6), ((6, 6, 6), 591_322, 87.2e6), ((12, 12, 12), 1_147_738, 167.4e6)],
)
def test_the_networks_of_fedgkt_have_its_parameters(
    depths: Any, parameters: int, multiply_adds: float
) -> None:
    cost = cost_of(resnet(depths, 10), CIFAR)
    assert cost.parameters == parameters
    assert cost.multiply_adds == pytest.approx(multiply_adds, rel=1e-3)


def test_an_edge_holds_54_to_109_times_less_and_computes_9_to_17_times_less() -> None:
    edge = cost_of(resnet((2,), 10), CIFAR)
    middle, large = (cost_of(resnet((depth,) * 3, 10), CIFAR) for depth in (6, 12))
    assert middle.parameters / edge.parameters == pytest.approx(55.9, abs=0.05)
    assert large.parameters / edge.parameters == pytest.approx(108.4, abs=0.05)
    assert middle.multiply_adds / edge.multiply_adds == pytest.approx(9.07, abs=0.01)
    assert large.multiply_adds / edge.multiply_adds == pytest.approx(17.4, abs=0.05)


def test_a_network_costs_what_its_two_sides_cost() -> None:
    whole = cost_of(resnet((1, 1), 10), CIFAR)
    below, above = cost_of(stem(), CIFAR), cost_of(stages((1, 1), 10), (STEM_CHANNELS, 32, 32))
    assert whole == Cost(
        parameters=below.parameters + above.parameters,
        multiply_adds=below.multiply_adds + above.multiply_adds,
    )


def test_the_sides_of_a_network_fit_together() -> None:
    network = resnet((1, 1), 5, channels=1).eval()
    x = torch.randn(2, 1, 8, 8)
    h = network[0](x)
    assert h.shape == (2, STEM_CHANNELS, 8, 8)
    assert torch.equal(network[1](h), network(x))
    assert network(x).shape == (2, 5)


def test_layers_are_counted_by_hand() -> None:
    # 8 x 8 maps: 3 x 3 over 4 / 2 channels to 6; back by 2 x 2, each of 6 x 64 values spread to 5 channels.
    grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    assert cost_of(grouped, (4, 8, 8)).multiply_adds == 6 * 64 * 2 * 9
    back = nn.ConvTranspose2d(6, 5, 2, stride=2)
    assert cost_of(back, (6, 8, 8)).multiply_adds == 6 * 64 * 5 * 4
    assert cost_of(nn.Linear(7, 3), (7,)) == Cost(parameters=24, multiply_adds=21)
    assert cost_of(nn.ReLU(), (7,)) == Cost(parameters=0, multiply_adds=0)


def test_a_shared_layer_counts_once_as_parameters_and_each_time_as_work() -> None:
    layer = nn.Linear(5, 5)
    assert cost_of(nn.Sequential(layer, layer), (5,)) == Cost(parameters=30, multiply_adds=50)


def test_a_meter_counts_every_row_once_forward_and_three_times_where_gradients_follow() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    meter, rows = Meter(), torch.ones(4, 7)
    with metered(meter), torch.no_grad():
        model(rows)
    assert meter.multiply_adds == 4 * (35 + 15)
    with metered(meter):
        model(rows).sum().backward()
    assert meter.multiply_adds == 4 * 4 * (35 + 15)
    model(rows)
    assert meter.multiply_adds == 4 * 4 * (35 + 15)


def test_a_layer_that_no_gradient_reaches_counts_once() -> None:
    model = nn.Sequential(nn.Linear(7, 5).requires_grad_(False), nn.Linear(5, 3))
    meter = Meter()
    with metered(meter):
        model(torch.ones(1, 7))
    assert meter.multiply_adds == 35 + 3 * 15


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost_of(model, (4,))
    assert model.training
    assert not model[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model[0]._forward_hooks


def test_a_layer_that_cannot_be_counted_is_named() -> None:
    with pytest.raises(LearnerError, match="LSTM"):
        cost_of(nn.LSTM(4, 4), (3, 4))
