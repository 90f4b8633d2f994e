"""Jobs of knowledge exchange between node and learner: as they were, or refused."""

import contextlib
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl import work
from p2pfl.errors import LearnerError
from p2pfl.ids import PeerId
from p2pfl.node.learner_jobs import pack, unpack_job, unpack_result

A, B = PeerId("a"), PeerId("b")
HIDDEN = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
CODED = work.Samples(
    hidden=HIDDEN,
    scales=np.ones(3, np.float32),
    z=np.zeros((3, 2), np.float16),
    labels=np.zeros(3, np.uint16),
)
PLAIN = work.Samples(hidden=HIDDEN.astype(np.float32), z=np.zeros((3, 2)), labels=np.zeros(3, np.int64))
JOBS: tuple[work.Job, ...] = (
    work.Fit(),
    work.Fit(
        teacher=work.Teacher(
            ids=np.array([2**64 - 1, 0], np.uint64), log_p=np.zeros((2, 2)), alpha=0.5, temperature=3.0
        ),
        is_frozen=True,
    ),
    work.Fit(
        pull=work.Pull(centres=np.ones((2, 3), np.float32), is_known=np.array([True, False]), strength=1.0)
    ),
    work.Fit(mutual=work.Mutual(alpha=0.5, beta=0.25, temperature=1.0)),
    work.Answer(),
    work.Extract(most=10),
    work.Summarise(),
    work.Judge(features={A: CODED}),
    work.Learn(features={A: CODED, B: PLAIN}, only_answer={}, alpha=1.0, temperature=3.0),
    work.Mix(models={A: np.arange(4, dtype=np.float32)}, is_adopted=True),
    work.Distill(p=np.zeros((2, 2)), is_used=np.array([True, False]), alpha=1.0, temperature=3.0, epochs=4),
)
RESULTS: tuple[work.Result, ...] = (
    work.Fitted(),
    work.Answered(logits=np.zeros((2, 3), np.float32), confidence=np.zeros(0)),
    work.Extracted(
        ids=np.arange(3, dtype=np.uint64),
        hidden=np.zeros((3, 2), np.float32),
        logits=np.zeros((3, 2)),
        labels=np.zeros(3, np.int64),
        is_held_out=np.zeros(3, np.bool_),
    ),
    work.Summarised(embeddings=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64)),
    work.Judged(losses={A: 0.5, B: float("nan")}),
    work.Learned(logits={A: np.zeros((1, 2))}, model=np.zeros(3, np.float32)),
    work.Mixed(),
    work.Distilled(),
)


def _assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif is_dataclass(one):
        for field in fields(one):
            _assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            _assert_same(value, other[key])
    else:
        assert one == other or (one != one and other != other)


def _sent(value: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(pack(value)))


@pytest.mark.parametrize("job", JOBS)
def test_a_job_arrives_as_it_was(job: work.Job) -> None:
    _assert_same(unpack_job(_sent(job)), job)


@pytest.mark.parametrize("result", RESULTS)
def test_a_result_arrives_as_it_was(result: work.Result) -> None:
    _assert_same(unpack_result(_sent(result)), result)


def test_every_job_and_every_result_was_sent() -> None:
    assert {type(job) for job in JOBS} == set(work.Job.__args__)
    assert {type(result) for result in RESULTS} == set(work.Result.__args__)


def test_features_stay_as_narrow_as_they_are() -> None:
    assert len(msgspec.msgpack.encode(pack(CODED))) < 230


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        [],
        ["array", "<f4", [2], b"123"],
        ["array", "|O", [1], b"12345678"],
        ["array", "<f4", [-1], b""],
        ["object", "Worked", {}],
        ["object", "Extract", {}],
        ["object", "Extract", {"most": 3, "more": 1}],
        ["object", "Fitted", {}],
        ["map", {"a": 1}],
        {"a": 1},
    ],
)
def test_what_is_no_job_is_refused(wrong: Any) -> None:
    with pytest.raises(LearnerError):
        unpack_job(wrong)


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
_ANY = st.recursive(
    _PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.tuples(st.sampled_from(["array", "map", "object"]), inner, inner).map(list)
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(_ANY)
def test_any_value_is_a_result_or_an_error(value: Any) -> None:
    with contextlib.suppress(LearnerError):
        unpack_result(value)
