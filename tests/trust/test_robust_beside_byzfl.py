"""The same answers as ByzFL's numpy back end, where somebody has installed it beside this project.

It is no dependency: it would replace torch, and its package imports a training loop.
`benchmarks/with_byzfl.sh` makes an environment that has it.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from p2pfl.trust.robust import aggregate

if (_SPEC := importlib.util.find_spec("byzfl")) is None or _SPEC.submodule_search_locations is None:
    pytest.skip("ByzFL is not installed; benchmarks/with_byzfl.sh says how", allow_module_level=True)

N, F, D = 21, 5, 20_000


@pytest.fixture(scope="module")
def byzfl() -> Any:
    package = ModuleType("byzfl")
    assert _SPEC is not None
    package.__path__ = list(_SPEC.submodule_search_locations or ())
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators.aggregators")


@pytest.fixture(scope="module")
def nnm(byzfl: Any) -> Any:
    return importlib.import_module("byzfl.aggregators.preaggregators").NNM(F)


RULES = ["mean", "coordinate-median", "trimmed-mean", "krum", "multi-krum", "geometric-median"]


def theirs(byzfl: Any, rule: str) -> Any:
    match rule:
        case "mean":
            return byzfl.Average()
        case "coordinate-median":
            return byzfl.Median()
        case "trimmed-mean":
            return byzfl.TrMean(F)
        case "krum":
            return byzfl.Krum(F)
        case "multi-krum":
            return byzfl.MultiKrum(F)
        case _:
            return byzfl.GeometricMedian(nu=1e-9, T=200)


@pytest.fixture
def x() -> Any:
    rows = np.random.default_rng(0).standard_normal((N, D), dtype=np.float32)
    rows *= np.linspace(0.8, 1.3, N, dtype=np.float32)[:, None]
    rows[-F:] += 0.3
    return rows


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_gives_what_byzfl_gives(byzfl: Any, x: Any, rule: str) -> None:
    np.testing.assert_allclose(aggregate(rule, x, f=F), theirs(byzfl, rule)(x), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_after_nnm_too(byzfl: Any, nnm: Any, x: Any, rule: str) -> None:
    np.testing.assert_allclose(aggregate(f"nnm+{rule}", x, f=F), theirs(byzfl, rule)(nnm(x)), atol=1e-5)


def test_monna_and_centered_clipping_around_a_model(byzfl: Any, x: Any) -> None:
    np.testing.assert_allclose(aggregate("monna", x, f=F, anchor=x[3]), byzfl.MoNNA(F, idx=3)(x), atol=1e-5)
    start, tau = np.zeros(D, np.float32), 0.4 * D**0.5
    np.testing.assert_allclose(
        aggregate("centered-clipping", x, f=F, anchor=start, tau=tau, iterations=4),
        byzfl.CenteredClipping(L=4, tau=tau)(x),
        atol=1e-5,
    )


def test_meamed_but_for_values_as_far_from_the_median_to_the_last_bit(byzfl: Any, x: Any) -> None:
    apart = np.abs(aggregate("meamed", x, f=F) - byzfl.Meamed(F)(x))
    assert np.quantile(apart, 0.999) < 1e-5
