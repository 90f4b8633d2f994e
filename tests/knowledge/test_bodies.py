"""Packets as bytes: exact sizes, one spelling, and nothing but a value or a RemoteError."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import LocalError, RemoteError
from p2pfl.knowledge import bodies
from p2pfl.knowledge.beliefs import LOGIT_FLOOR, from_codes, log_softmax, to_codes
from p2pfl.knowledge.packets import (
    Coding,
    Features,
    HubModel,
    Packet,
    Probe,
    Prototypes,
    SoftLabels,
    features_bytes,
    hidden_of,
    hub_model_bytes,
    probe_bytes,
    prototypes_bytes,
    quantised,
    soft_labels_bytes,
)

DIGEST = b"\x07" * 32
# One packet of 5 samples (of at most 6), 3 classes, 4 hidden values; a probe set of 11.
CODINGS = [Coding.FLOAT32, Coding.INT8]
READERS: dict[str, Callable[[Any], Packet]] = {
    "float32": lambda b: bodies.decode_features(b, classes=3, width=4, most=6, coding=Coding.FLOAT32),
    "int8": lambda b: bodies.decode_features(b, classes=3, width=4, most=6, coding=Coding.INT8),
    "soft": lambda b: bodies.decode_soft_labels(b, classes=3, most=6),
    "probe": lambda b: bodies.decode_probe(b, digest=DIGEST, classes=3, samples=11, coding=Coding.INT8),
    "delta": lambda b: bodies.decode_probe(b, digest=DIGEST, classes=3, samples=11, coding=Coding.FLOAT16),
    "proto": lambda b: bodies.decode_prototypes(b, classes=3, width=4),
    "hub": lambda b: bodies.decode_hub_model(b, values=7),
}


def packets() -> dict[str, Packet]:
    rng = np.random.default_rng(0)
    ids = np.array([1, 5, 6, 2**40, 2**64 - 1], np.uint64)
    z = log_softmax(rng.normal(size=(5, 3)), LOGIT_FLOOR).astype(np.float16)
    hidden = rng.normal(size=(5, 4)).astype(np.float32)
    codes, scales = quantised(hidden)
    labels = np.array([0, 2, 1, 1, 0], np.uint16)
    vouched, sent = rng.random(11) < 0.7, np.zeros(11, np.bool_)
    sent[np.flatnonzero(vouched)[:2]] = True
    log_p = from_codes(to_codes(log_softmax(rng.normal(size=(int(vouched.sum()), 3)))))
    moved = log_softmax(rng.normal(size=(2, 3))).astype(np.float16).astype(np.float64)
    return {
        "float32": Features(ids=ids, hidden=hidden, z=z, labels=labels, version=9),
        "int8": Features(ids=ids, hidden=codes, scales=scales, z=z, labels=labels),
        "soft": SoftLabels(ids=ids, z=z, version=3),
        "probe": Probe(digest=DIGEST, vouched=vouched, sent=vouched, log_p=log_p),
        "delta": Probe(digest=DIGEST, vouched=vouched, sent=sent, log_p=moved, coding=Coding.FLOAT16, base=4),
        "proto": Prototypes(
            classes=np.array([0, 2], np.uint16),
            counts=np.array([3, 900], np.uint32),
            means=hidden[:2],
            K=3,
        ),
        "hub": HubModel(values=rng.normal(size=7).astype(np.float32), version=12),
    }


def fields(packet: Packet) -> dict[str, Any]:
    return {name: getattr(packet, name) for name in packet.__dataclass_fields__}


@pytest.mark.parametrize("name", READERS)
def test_a_packet_comes_back_as_it_was(name: str) -> None:
    packet = packets()[name]
    back = READERS[name](bodies.encode(packet))
    for field, value in fields(packet).items():
        np.testing.assert_array_equal(getattr(back, field), value, err_msg=field)
    np.testing.assert_array_equal(bodies.encode(back), bodies.encode(packet))


def test_the_sizes_are_those_of_the_formulas() -> None:
    made = {name: bodies.encode(packet).size for name, packet in packets().items()}
    vouched = int(packets()["probe"].vouched.sum())  # type: ignore[union-attr]
    assert made == {
        "float32": features_bytes(5, width=4, classes=3, coding=Coding.FLOAT32),
        "int8": features_bytes(5, width=4, classes=3, coding=Coding.INT8),
        "soft": soft_labels_bytes(5, classes=3),
        "probe": probe_bytes(11, rows=vouched, classes=3, coding=Coding.INT8),
        "delta": probe_bytes(11, rows=2, classes=3, coding=Coding.FLOAT16, is_delta=True),
        "proto": prototypes_bytes(2, width=4),
        "hub": hub_model_bytes(7),
    }
    assert made["float32"] == 16 + 5 * (8 + 16 + 6 + 1)
    assert made["int8"] == 16 + 5 * (8 + 4 + 4 + 6 + 1)
    assert made["soft"] == 16 + 5 * (8 + 6)
    assert made["delta"] == 16 + 32 + 2 + 2 + 2 * 6
    assert made["proto"] == 16 + 2 * (2 + 4 + 16)


def test_int8_features_of_cifar_are_a_quarter_of_the_bytes() -> None:
    sizes = [features_bytes(500, width=16 * 32 * 32, classes=10, coding=coding) for coding in CODINGS]
    assert sizes[1] / sizes[0] < 0.2505


def test_labels_take_two_bytes_from_257_classes_on() -> None:
    byte, wide = (features_bytes(1, width=0, classes=K, coding=Coding.FLOAT32) for K in (256, 257))
    assert wide - byte == 2 + 1
    packet = Features(
        ids=np.array([4], np.uint64),
        hidden=np.ones((1, 2), np.float32),
        z=np.full((1, 300), -5.703, np.float16),
        labels=np.array([299], np.uint16),
    )
    body = bodies.encode(packet)
    assert body.size == features_bytes(1, width=2, classes=300, coding=Coding.FLOAT32)
    back = bodies.decode_features(body, classes=300, width=2, most=1, coding=Coding.FLOAT32)
    assert back.labels.tolist() == [299]


@given(st.integers(0, 2**32 - 1), st.floats(1e-20, 1e5))
def test_int8_is_off_by_at_most_half_a_scale(seed: int, size: float) -> None:
    hidden = (np.random.default_rng(seed).normal(size=(3, 20)) * size).astype(np.float32)
    hidden[1] = 0
    codes, scales = quantised(hidden)
    packet = Features(
        ids=np.arange(3, dtype=np.uint64),
        hidden=codes,
        scales=scales,
        z=np.zeros((3, 1), np.float16),
        labels=np.zeros(3, np.uint16),
    )
    np.testing.assert_allclose(hidden_of(packet), hidden, rtol=0, atol=float(scales.max()) * 0.5001)
    assert not hidden_of(packet)[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_any_bytes_give_a_packet_or_a_remote_error(name: str, data: st.DataObject) -> None:
    good = bytearray(bodies.encode(packets()[name]).tobytes())
    for _ in range(data.draw(st.integers(0, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    body = data.draw(st.one_of(st.just(bytes(good)), st.binary(max_size=80), st.just(bytes(good[:-1]))))
    try:
        packet = READERS[name](body)
    except RemoteError:
        return
    assert bodies.encode(packet).tobytes() == body


@pytest.mark.parametrize("name", READERS)
def test_a_packet_of_another_kind_is_refused(name: str) -> None:
    for other, packet in packets().items():
        if other != name:
            with pytest.raises(RemoteError):
                READERS[name](bodies.encode(packet))


def test_a_prefix_that_promises_much_allocates_nothing() -> None:
    body = bytearray(bodies.encode(packets()["float32"]).tobytes())
    body[4:8] = (2**31).to_bytes(4, "little")
    tracemalloc.start()
    with pytest.raises(RemoteError, match="its prefix says"):
        bodies.decode_features(bytes(body), classes=3, width=4, most=2**32, coding=Coding.FLOAT32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 1024


@pytest.mark.parametrize(
    ("expectation", "words"),
    [
        ({"classes": 4}, "of 3 classes, expected 4"),
        ({"width": 5}, "4 hidden values a sample, expected 5"),
        ({"most": 4}, "of 5 entries, expected 1 to 4"),
        ({"coding": Coding.INT8}, "the agreement has INT8"),
    ],
)
def test_what_is_expected_here_decides(expectation: dict[str, Any], words: str) -> None:
    usual: dict[str, Any] = {"classes": 3, "width": 4, "most": 6, "coding": Coding.FLOAT32}
    with pytest.raises(RemoteError, match=words):
        bodies.decode_features(bodies.encode(packets()["float32"]), **(usual | expectation))


def test_predictions_on_another_probe_set_are_refused() -> None:
    with pytest.raises(RemoteError, match="another probe set"):
        bodies.decode_probe(
            bodies.encode(packets()["probe"]), digest=b"\x08" * 32, classes=3, samples=11, coding=Coding.INT8
        )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("float32", {"ids": np.array([1, 5, 5, 6, 7], np.uint64)}, "ids do not rise"),
        ("float32", {"labels": np.full(5, 3, np.uint16)}, "label is of no class"),
        ("float32", {"hidden": np.full((5, 4), np.nan, np.float32)}, "hidden values are not in"),
        ("int8", {"scales": np.full(5, -1, np.float32)}, "scales"),
        ("int8", {"scales": np.full(5, 1e36, np.float32)}, "scales"),
        ("soft", {"z": np.full((5, 3), 0.5, np.float16)}, "logits are not in"),
        ("soft", {"z": np.full((5, 3), np.nan, np.float16)}, "logits are not in"),
        ("soft", {"version": 2**32}, "version"),
        ("probe", {"sent": np.zeros(11, np.bool_)}, "not one prediction"),
        ("delta", {"vouched": np.zeros(11, np.bool_)}, "not vouched for"),
        ("proto", {"counts": np.zeros(2, np.uint32)}, "mean of no samples"),
        ("proto", {"classes": np.array([2, 0], np.uint16)}, "classes do not rise"),
        ("proto", {"means": np.full((2, 4), np.inf, np.float32)}, "means are not in"),
        ("hub", {"values": np.full(7, np.nan, np.float32)}, "model's values are not in"),
        ("hub", {"values": np.zeros(0, np.float32)}, "without a value"),
    ],
)
def test_our_own_mistakes_are_found_before_they_are_sent(
    name: str, change: dict[str, Any], words: str
) -> None:
    packet = packets()[name]
    with pytest.raises(LocalError, match=words):
        bodies.encode(type(packet)(**(fields(packet) | change)))
