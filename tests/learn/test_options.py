from typing import Any

import msgspec
import pytest

from p2pfl.errors import ConfigError
from p2pfl.learn.options import LearnerOptions, ModelOptions, Target, parse_target


def test_a_learner_table_is_read_whole() -> None:
    options = msgspec.toml.decode(
        b"""
        local_steps = 20
        share = ["layer1.*"]
        standardise = "federation"
        data = {source = "csv:*.csv", target = "num > 0", zero_is_missing = ["chol"]}
        model = {kind = "mlp", hidden = [32, 16]}
        optimizer = {lr = 1, schedule = "cosine", reset = false}
        """,
        type=LearnerOptions,
    )
    assert options.model == ModelOptions(kind="mlp", hidden=(32, 16))
    assert options.optimizer.lr == 1.0
    assert options.data.zero_is_missing == ("chol",)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"local_step = 5", "local_step"),
        (b"local_steps = 0", "$.local_steps"),
        (b'model = {kind = "transformer"}', "$.model.kind"),
        (b"optimizer = {lr = -0.1}", "$.optimizer.lr"),
        (b"data = {test_fraction = 1.0}", "$.data.test_fraction"),
        (b'data = {sorce = "npz:a"}', "sorce"),
        (b"share = []", "$.share"),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_its_path(text: Any, path: Any) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.toml.decode(text, type=LearnerOptions)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("num > 0", Target("num", ">", 0.0)),
        (" blood pressure<=1.5e2 ", Target("blood pressure", "<=", 150.0)),
        ("a!=-1", Target("a", "!=", -1.0)),
        ("a==2", Target("a", "==", 2.0)),
    ],
)
def test_a_target_is_a_column_an_operator_and_a_number(text: Any, target: Any) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text", ["num", "num >", "> 0", "num > zero", "num = 0", "a < b < 3", "n > inf", "n > nan"]
)
def test_anything_else_is_no_target(text: Any) -> None:
    with pytest.raises(ConfigError, match="num > 0"):
        parse_target(text)
