"""Roles: one agreement, sites that differ as it says."""

from typing import Any

import msgspec
import numpy as np
import pytest
from lessons import digits, options, shop

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.learner import Learner, Site
from p2pfl.learn.metrics import by_class
from p2pfl.learn.options import LearnerOptions, at_role

MIXED = options(
    per_class=True,
    roles={
        "small": {"model": {"kind": "logistic"}, "batch_size": 5, "local_steps": 3},
        "image": {"model": {"kind": "cnn", "channels": [4, 8]}, "optimizer": {"lr": 0.01}},
    },
)


def test_a_role_changes_what_it_says_and_nothing_else() -> None:
    small = at_role(MIXED, "small")
    assert (small.model, small.batch_size, small.local_steps) == (MIXED.roles["small"].model, 5, 3)
    assert (small.optimizer, small.per_class, small.roles) == (MIXED.optimizer, True, {})
    assert at_role(MIXED, "image").optimizer.lr == 0.01
    assert at_role(MIXED, "image").batch_size == MIXED.batch_size


def test_a_role_with_code_takes_the_place_of_a_model_and_the_other_way() -> None:
    roles = {"own": {"module": "mine:learner"}, "given": {"model": {"kind": "mlp"}}}
    own = at_role(options(roles=roles), "own")
    assert (own.module, own.model) == ("mine:learner", None)
    given = at_role(options(module="theirs:learner", model=None, roles=roles), "given")
    assert (given.module, given.model.kind if given.model else "") == ("", "mlp")


def test_the_only_role_need_not_be_said_and_one_of_two_must() -> None:
    one = options(roles={"edge": {"capacity": 2.0}})
    assert at_role(one, "").capacity == 2.0
    assert at_role(options(), "") == options()
    for chosen, role, said in (
        (MIXED, "", "image, small.*role in node.toml"),
        (MIXED, "large", "no role 'large'; it has image, small"),
        (options(), "edge", "no learner.roles"),
    ):
        with pytest.raises(ConfigError, match=said):
            at_role(chosen, role)


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({"a b": {}}, "letters, digits"),
        ({"": {}}, "letters, digits"),
        ({"x": {"module": "a:b", "model": {}}}, "both module and model"),
        ({"x": {"capacity": -1}}, "capacity"),
        ({"x": {"share": ["*"]}}, "share"),
    ],
)
def test_roles_that_make_no_sense_are_refused_as_they_are_read(roles: Any, said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert({"roles": roles}, LearnerOptions)


def test_each_site_is_built_as_its_role_says() -> None:
    factory = resolve(MIXED)
    sizes = {}
    for role in ("small", "image"):
        learner: Any = build(factory, Site(role=role, options=at_role(MIXED, role), dataset=digits()))
        sizes[role] = learner.parameters().size, learner.local_steps
    assert sizes["small"] == (650, 3)
    assert sizes["image"][1] == MIXED.local_steps
    with pytest.raises(ConfigError, match="which one this site plays"):
        factory(Site(dataset=digits()))


def test_sites_of_different_models_take_part_in_one_probe_run() -> None:
    expected = [shop("probe", MIXED, role=role).ready().expected for role in ("small", "image")]
    assert expected[0] == expected[1]


def test_classes_are_measured_one_by_one_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    d = digits()
    for chosen in (MIXED, options(per_class=True, model={"kind": "gkt"})):
        for role in chosen.roles or ("",):
            told = at_role(chosen, role)
            learner: Any = build(resolve(told), Site(options=told, dataset=d))
            measured = learner.evaluate(learner.parameters())
            predicted = np.asarray(learner.predict(d.x_test)).argmax(axis=1)
            assert by_class(d.y_test, predicted, d.y_train, 10).items() <= measured.items()
            assert {f"accuracy_{c}" for c in set(d.y_test.tolist())} <= measured.keys()
    plain: Learner = build(resolve(options()), Site(options=options(), dataset=d))
    assert plain.evaluate(plain.parameters()).keys() == {"loss", "accuracy"}


def test_local_accuracy_is_weighted_as_the_sites_own_classes_are() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0])
    assert by_class(labels, predicted, np.array([0, 0, 0, 1]), 3)["local_accuracy"] == 0.75
    # Class 2 has no test row: nothing is known of it, and its weight goes to the others.
    assert by_class(labels, predicted, np.array([1, 2, 2]), 3)["local_accuracy"] == 0.0
    assert "local_accuracy" not in by_class(labels, predicted, np.array([2]), 3)


def test_an_unknown_kind_of_exchange_is_refused_at_the_start() -> None:
    with pytest.raises(LearnerError, match="not one of"):
        shop("fedavg")
