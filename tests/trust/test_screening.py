import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from p2pfl.events import Header, Kind
from p2pfl.ids import RunId
from p2pfl.trust.identity import Identity
from p2pfl.trust.relations import Level
from p2pfl.trust.screening import MAX_NORM, REASONS, judge_header, judge_vector, norm

A, B = (Identity(bytes([i]) * 32).peer_id for i in (1, 2))
SCHEMA = b"s" * 32
HEADER = Header(
    run=RunId("ab" * 32),
    sender=A,
    recipient=B,
    incarnation=1,
    boot_session=2,
    kind=Kind.SHARE,
    round=0,
    edge_seq=1,
    schema_hash=SCHEMA,
    size=400,
    raw_size=400,
    weights=(0.5,),
    issued_at=0.0,
)
NO_STATISTICS = np.zeros(0)


def header_verdict(header: Header = HEADER, **more: object) -> str | None:
    arguments: dict[str, object] = {
        "schema_hash": SCHEMA,
        "expected_bytes": 400,
        "is_member": True,
        "level": Level.NORMAL,
        "max_weight": 4.0,
    }
    return judge_header(header, **(arguments | more))  # type: ignore[arg-type]


def vector_verdict(
    x: list[float] | NDArray[np.float32], statistics: NDArray[np.float64] = NO_STATISTICS, **more: object
) -> str | None:
    arguments: dict[str, object] = {"weight": 1.0, "max_norm": None, "max_weight": 4.0}
    return judge_vector(np.asarray(x, np.float32), statistics, **(arguments | more))  # type: ignore[arg-type]


def test_an_honest_header_passes() -> None:
    assert header_verdict() is None
    assert header_verdict(replace(HEADER, kind=Kind.STATE, weights=())) is None


@pytest.mark.parametrize(
    ("change", "more", "reason"),
    [
        ({}, {"is_member": False}, "not-member"),
        ({}, {"level": Level.DENY}, "not-accepted"),
        ({}, {"level": Level.QUARANTINE}, "not-accepted"),
        ({"kind": Kind.HELLO}, {}, "kind"),
        ({}, {"recent": 2}, "rate"),
        ({"schema_hash": b"t" * 32}, {}, "schema"),
        ({"codec": "zstd"}, {}, "codec"),
        ({"raw_size": 404, "size": 404}, {}, "size"),
        ({"size": 2**40, "raw_size": 2**40}, {}, "size"),
        ({"size": 401}, {}, "size"),
        ({"raw_size": 4000, "codec": "zstd"}, {"codecs": ("none", "zstd")}, "size"),
        ({"size": 441, "codec": "zstd"}, {"codecs": ("none", "zstd")}, "size"),
        ({}, {"free_bytes": 399}, "memory"),
        ({"weights": ()}, {}, "weight"),
        ({"weights": (-0.5,)}, {}, "weight"),
        ({"weights": (0.0,)}, {}, "weight"),
        ({"weights": (float("nan"),)}, {}, "weight"),
        ({"weights": (float("inf"),)}, {"max_weight": float("inf")}, "weight"),
        ({"weights": (1e6,)}, {}, "weight"),
    ],
)
def test_a_header_is_refused_with_the_first_reason(
    change: dict[str, object], more: dict[str, object], reason: str
) -> None:
    assert header_verdict(replace(HEADER, **change), **more) == reason
    assert reason in REASONS


def test_a_stranger_learns_nothing_of_the_model_from_the_answer() -> None:
    probes = [
        HEADER,
        replace(HEADER, schema_hash=b""),
        replace(HEADER, raw_size=1),
        replace(HEADER, codec="x"),
    ]
    assert {header_verdict(one, is_member=False) for one in probes} == {"not-member"}


def test_an_honest_vector_passes() -> None:
    assert vector_verdict([1.0, -2.0, 0.0], np.array([10.0, 3.0])) is None
    assert vector_verdict([]) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 65_535, 65_536, 199_999])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(bad: float, at: int) -> None:
    x = np.ones(200_000, np.float32)
    assert vector_verdict(x) is None
    x[at] = bad
    assert vector_verdict(x) == "not-finite"


def test_infinities_that_would_cancel_are_found() -> None:
    assert vector_verdict([np.inf, -np.inf]) == "not-finite"


def test_statistics_are_screened_too() -> None:
    assert vector_verdict([1.0], np.array([np.nan])) == "not-finite"
    assert vector_verdict([1.0], np.array([-1e200])) == "norm"


def test_the_largest_floats_are_refused_though_their_norm_is_finite() -> None:
    x = np.full(100_000, 3e38, np.float32)
    assert norm(x) == pytest.approx(3e38 * np.sqrt(100_000))
    assert vector_verdict(x) == "norm"


def test_the_norm_bound_holds_and_one_step_past_it_fails() -> None:
    assert vector_verdict([3.0, 4.0], max_norm=5.0) is None
    assert vector_verdict([3.0, 4.0001], max_norm=5.0) == "norm"
    assert vector_verdict([1e19], max_norm=1e30) == "norm"
    assert MAX_NORM < 1e19


def test_a_tiny_weight_cannot_carry_a_huge_model() -> None:
    assert vector_verdict([0.3, 0.4], weight=0.1, max_norm=5.1) is None
    assert vector_verdict([0.3, 0.4], weight=0.01, max_norm=5.1) == "norm"
    assert vector_verdict([1.0], weight=1e-30) == "norm"


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, 4.0001, 1e6])
def test_a_weight_that_can_only_be_a_lie_is_refused(weight: float) -> None:
    assert vector_verdict([1.0], weight=weight) == "weight"


def test_the_whole_mass_of_the_run_is_still_believed() -> None:
    assert vector_verdict([1.0], weight=4.0) is None


def test_another_shape_or_type_is_refused() -> None:
    assert judge_vector(np.zeros(3), NO_STATISTICS, weight=1.0, max_norm=None, max_weight=4.0) == "schema"  # type: ignore[arg-type]
    assert vector_verdict(np.zeros((2, 2), np.float32)) == "schema"
    assert vector_verdict([1.0, 2.0], dimension=3) == "schema"
    assert vector_verdict([1.0, 2.0], dimension=2) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32), max_size=50))
def test_the_norm_is_finite_exactly_when_every_value_is(values: list[float]) -> None:
    x = np.array(values, np.float32)
    assert np.isfinite(norm(x)) == np.isfinite(x).all()
    if np.isfinite(x).all():
        assert norm(x) == pytest.approx(float(np.linalg.norm(x.astype(np.float64))))


def test_vectors_that_are_not_aligned_or_contiguous_are_judged_alike() -> None:
    raw = np.frombuffer(b"\0" + np.arange(8, dtype=np.float32).tobytes(), np.uint8)
    unaligned = np.frombuffer(raw.data, np.float32, offset=1)
    assert norm(unaligned) == norm(np.arange(8, dtype=np.float32))
    assert norm(np.arange(8, dtype=np.float32)[::2]) == pytest.approx(np.sqrt(4 + 16 + 36))


def test_judging_ten_million_values_takes_no_copy_of_them() -> None:
    x = np.ones(10_000_000, np.float32)
    tracemalloc.start()
    try:
        assert judge_vector(x, NO_STATISTICS, weight=1.0, max_norm=None, max_weight=4.0) is None
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()
