import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.flat import flatten, is_shared, schema_of, schema_of_specs, unflatten


def _tensors() -> Any:
    rng = np.random.default_rng(0)
    return {
        "body.weight": rng.normal(size=(3, 2)).astype(np.float32),
        "body.count": np.array(7, np.int64),
        "body.mean": rng.normal(size=3).astype(np.float16),
        "head.weight": rng.normal(size=(1, 3)).astype(np.float32),
        "head.bias": np.float32(0.5).reshape(()),
    }


def test_tensors_lie_end_to_end_in_the_order_given() -> None:
    schema = schema_of(_tensors())
    assert schema.names == ("body.weight", "body.mean", "head.weight", "head.bias")
    assert schema.offsets == (0, 6, 9, 12)
    assert schema.size == 13
    assert flatten(_tensors(), schema)[12] == 0.5


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        hnp.arrays(
            st.sampled_from([np.float32, np.float16]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
            elements=st.floats(width=16, allow_nan=True, allow_infinity=True),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_single_and_half_precision_come_back_bit_for_bit(tensors: Any) -> None:
    schema = schema_of(tensors)
    back = unflatten(flatten(tensors, schema), schema)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].tobytes() == tensor.tobytes()


def test_double_precision_comes_back_rounded_to_single() -> None:
    tensors = {"w": np.array([1 / 3], np.float64)}
    back = unflatten(flatten(tensors, schema_of(tensors)), schema_of(tensors))
    assert back["w"].dtype == np.float64
    assert back["w"][0] == np.float32(1 / 3)


def test_integer_tensors_stay_at_home() -> None:
    assert "body.count" not in schema_of(_tensors()).names


def test_share_takes_what_its_globs_name() -> None:
    assert schema_of(_tensors(), ["body.*"]).names == ("body.weight", "body.mean")
    assert schema_of(_tensors(), ["*", "!head.*"]).names == ("body.weight", "body.mean")
    assert is_shared("head.bias", ["*", "!head.*", "head.bias"])


def test_a_glob_that_matches_nothing_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'back\*', which matches no parameter; there are body.weight"):
        schema_of(_tensors(), ["back*"])


def test_sharing_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves nothing to share"):
        schema_of(_tensors(), ["*.count"])


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="two tensors are named 'a'"):
        schema_of_specs([("a", (1,), "float32"), ("a", (2,), "float32")])


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(LearnerError, match="w is complex64"):
        schema_of({"w": np.zeros(2, np.complex64)})


def test_the_hash_is_of_the_documented_form() -> None:
    schema = schema_of({"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float64)})
    text = 'p2pfl-schema/1\n[["w",[2,3],"float32"],["b",[2],"float64"]]'
    assert schema.hash() == hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros((3, 2), np.float32)},
        {"v": np.zeros((2, 3), np.float32)},
        {"w": np.zeros((2, 3), np.float64)},
        {"w": np.zeros((2, 3), np.float32), "b": np.zeros(1, np.float32)},
    ],
)
def test_another_name_shape_dtype_or_tensor_gives_another_hash(other: Any) -> None:
    assert schema_of(other).hash() != schema_of({"w": np.zeros((2, 3), np.float32)}).hash()


def test_the_order_of_tensors_is_part_of_the_hash() -> None:
    a, b = np.zeros(2, np.float32), np.zeros(2, np.float32)
    assert schema_of({"a": a, "b": b}).hash() != schema_of({"b": b, "a": a}).hash()


def test_a_vector_of_another_size_is_refused() -> None:
    schema = schema_of(_tensors())
    with pytest.raises(LearnerError, match="model of 13 parameters"):
        unflatten(np.zeros(12, np.float32), schema)
    with pytest.raises(LearnerError, match="model of 13 parameters"):
        flatten(_tensors(), schema, out=np.zeros(14, np.float32))


def test_a_missing_or_reshaped_tensor_is_refused() -> None:
    schema = schema_of(_tensors())
    with pytest.raises(LearnerError, match=r"lost head.bias"):
        flatten({name: t for name, t in _tensors().items() if name != "head.bias"}, schema)
    with pytest.raises(LearnerError, match=r"body.weight has shape \(2, 3\)"):
        flatten(_tensors() | {"body.weight": np.zeros((2, 3), np.float32)}, schema)


def test_flatten_writes_into_the_buffer_it_is_given() -> None:
    schema = schema_of(_tensors())
    out = np.zeros(schema.size, np.float32)
    assert flatten(_tensors(), schema, out=out) is out
    assert out.any()
