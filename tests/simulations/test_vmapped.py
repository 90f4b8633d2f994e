"""A population whose torch learners fit together commits what it commits when they fit one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from populations import agreement, ran, workload
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from p2pfl.errors import ConfigError
from p2pfl.events import Fact
from p2pfl.learn.learner import Learner, Site
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.simulations.scenario import load


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _factory(*, odd: int = -1) -> Any:
    """Perceptrons on rows of each site's own; site `odd` has another activation."""

    def factory(site: Site) -> Learner:
        number = int(site.data)
        x = torch.randn(12, 5, generator=torch.Generator().manual_seed(number))
        y = (x[:, 0] > 0).long()
        activation: nn.Module = nn.LeakyReLU(0.5) if number == odd else nn.ReLU()
        return TorchLearner(
            nn.Sequential(nn.Linear(5, 4), activation, nn.Linear(4, 2)),
            DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True),
            DataLoader(TensorDataset(x, y), batch_size=12),
            nn.functional.cross_entropy,
            lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5),
        )

    return factory


def test_models_and_losses_are_those_of_the_loop() -> None:
    n, spec = 9, agreement(9, learner={"local_steps": 4, "module": "own:learner"})
    one, other = (ran(n, spec, workload(n, _factory()), is_vmapped=vmapped) for vmapped in (True, False))
    assert [crew.stack is not None for crew in one.crews] == [True]
    assert [crew.stack is not None for crew in other.crews] == [False]
    np.testing.assert_allclose(one.models(), other.models(), rtol=0, atol=1e-6)
    losses = [[said["loss"] for said in some.per_round[:3]] for some in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_site_of_another_kind_fits_by_itself_and_it_is_said() -> None:
    said: list[Fact] = []
    n, spec = 5, agreement(5, learner={"local_steps": 4, "module": "own:learner"})
    sites = workload(n, _factory(odd=2))
    one = ran(n, spec, sites, is_vmapped=True, listener=lambda *what: said.append(what[2]))
    assert said[0].event == "1 of 5 learners fit one by one: its module or loss differs from the first site's"
    assert said[0].level == "warning"
    assert [crew.peers.tolist() for crew in one.crews] == [[0, 1, 3, 4], [2]]
    np.testing.assert_allclose(one.models(), ran(n, spec, sites).models(), rtol=0, atol=1e-6)


def test_learners_that_are_no_torch_learners_fit_as_ever() -> None:
    said: list[Fact] = []
    spec = agreement(4)
    one = ran(4, spec, is_vmapped=True, listener=lambda *what: said.append(what[2]))
    assert said[0].event == "4 of 4 learners fit one by one: it is no TorchLearner"
    assert one.models().tobytes() == ran(4, spec).models().tobytes()
    assert np.isfinite(one.models()).all()


def test_worlds_have_no_kernels_to_choose() -> None:
    with pytest.raises(ConfigError, match="kernels and consensus_every are for engine"):
        load("digits", settings=["simulation.kernels=vmap"])
    assert load("digits", engine="population", settings=["simulation.kernels=vmap"])
