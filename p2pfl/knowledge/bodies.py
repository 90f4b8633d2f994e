"""Packets as raw little-endian bytes, read and written.

A body is a prefix of 16 bytes (kind, coding, classes, n, width, version) and arrays without padding, in the
order of the packet's fields.  A reader knows beforehand what it expects, from the agreement and its own
learner: the classes, the width, how many samples at most.  The prefix is held against that before anything
else is read, and the length against the formula, so that memory is bounded by what was expected, and what was
read are views of the bytes that are there.  Anything else is a RemoteError.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from p2pfl.encoding import DIGEST_BYTES
from p2pfl.errors import LocalError, RemoteError
from p2pfl.knowledge.beliefs import from_codes, to_codes
from p2pfl.knowledge.packets import (
    PREFIX_BYTES,
    Coding,
    Features,
    HubModel,
    Packet,
    PacketKind,
    Probe,
    Prototypes,
    SoftLabels,
    fault_of,
    features_bytes,
    hub_model_bytes,
    label_type,
    probe_bytes,
    prototypes_bytes,
    soft_labels_bytes,
)

__all__ = [
    "Body",
    "encode",
    "decode_features",
    "decode_soft_labels",
    "decode_probe",
    "decode_prototypes",
    "decode_hub_model",
]

Body: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]
_AnyPacket = TypeVar("_AnyPacket", Features, SoftLabels, Probe, Prototypes, HubModel)

_PREFIX = struct.Struct("<BBHIII")

# --- writing -----------------------------------------------------------------------------------------


def encode(packet: Packet) -> NDArray[np.uint8]:
    """`packet` as bytes.  Raises LocalError on what would be refused."""
    if fault := fault_of(packet):
        raise LocalError(f"this packet would be refused: {fault}")
    match packet:
        case Features():
            n, d = packet.hidden.shape
            K = packet.z.shape[1]
            coding = Coding.FLOAT32 if packet.scales is None else Coding.INT8
            values = [packet.hidden] if packet.scales is None else [packet.scales, packet.hidden]
            labels = packet.labels.astype(label_type(K))
            prefix = _PREFIX.pack(PacketKind.FEATURES, coding, K, n, d, packet.version)
            return _joined(prefix, packet.ids, *values, packet.z, labels)
        case SoftLabels():
            n, K = packet.z.shape
            prefix = _PREFIX.pack(PacketKind.SOFT_LABELS, Coding.FLOAT16, K, n, 0, packet.version)
            return _joined(prefix, packet.ids, packet.z)
        case Probe():
            m, K = packet.log_p.shape
            prefix = _PREFIX.pack(PacketKind.PROBE, packet.coding, K, packet.vouched.size, m, packet.base)
            masks = [packet.vouched, packet.sent] if packet.base else [packet.vouched]
            bits = [np.packbits(mask, bitorder="little") for mask in masks]
            is_codes = packet.coding is Coding.INT8
            values_sent = to_codes(packet.log_p) if is_codes else packet.log_p.astype("<f2")
            return _joined(prefix + packet.digest, *bits, values_sent)
        case Prototypes():
            n, h = packet.means.shape
            prefix = _PREFIX.pack(PacketKind.PROTOTYPES, Coding.FLOAT32, packet.K, n, h, 0)
            return _joined(prefix, packet.classes, packet.counts, packet.means)
        case HubModel():
            m = packet.values.size
            prefix = _PREFIX.pack(PacketKind.HUB_MODEL, Coding.FLOAT32, 0, m, 0, packet.version)
            return _joined(prefix, packet.values)


# --- reading -----------------------------------------------------------------------------------------


def decode_features(body: Body, *, classes: int, width: int, most: int, coding: Coding) -> Features:
    """The Features in `body`: of `classes`, `width` hidden values, 1 to `most` samples.

    Raises RemoteError.
    """
    view, (n, d, version) = _opened(body, PacketKind.FEATURES, coding, classes=classes, most=most)
    _expect(d == width, f"features have {d} hidden values a sample, expected {width}")
    _sized(view, features_bytes(n, width=d, classes=classes, coding=coding))
    is_codes = coding is Coding.INT8
    forms: list[tuple[str, tuple[int, ...]]] = [("<u8", (n,))]
    forms += [("<f4", (n,)), ("<i1", (n, d))] if is_codes else [("<f4", (n, d))]
    ids, *values, z, labels = _read(view, *forms, ("<f2", (n, classes)), (label_type(classes), (n,)))
    packet = Features(
        ids=ids,
        scales=values[0] if is_codes else None,
        hidden=values[-1],
        z=z,
        labels=labels.astype(np.uint16),
        version=version,
    )
    return _checked(packet)


def decode_soft_labels(body: Body, *, classes: int, most: int) -> SoftLabels:
    """The SoftLabels in `body`: of `classes`, 1 to `most` samples.

    Raises RemoteError.
    """
    view, (n, width, version) = _opened(
        body, PacketKind.SOFT_LABELS, Coding.FLOAT16, classes=classes, most=most
    )
    _expect(width == 0, f"soft labels have a width of {width}, expected none")
    _sized(view, soft_labels_bytes(n, classes=classes))
    ids, z = _read(view, ("<u8", (n,)), ("<f2", (n, classes)))
    return _checked(SoftLabels(ids=ids, z=z, version=version))


def decode_probe(body: Body, *, digest: bytes, classes: int, samples: int, coding: Coding) -> Probe:
    """The Probe in `body`, on the set of `samples` whose hash is `digest`.  Raises RemoteError."""
    view, (n, m, base) = _opened(body, PacketKind.PROBE, coding, classes=classes, most=samples)
    _expect(n == samples, f"predictions are on {n} samples, the probe set has {samples}")
    _expect(m <= n, f"predictions for {m} of {n} samples")
    _sized(view, probe_bytes(n, rows=m, classes=classes, coding=coding, is_delta=base > 0))
    _expect(bytes(view[PREFIX_BYTES : PREFIX_BYTES + DIGEST_BYTES]) == digest, "another probe set is meant")
    bits = ("<u1", (-(-n // 8),))
    value = "<u1" if coding is Coding.INT8 else "<f2"
    *masks, values = _read(view[DIGEST_BYTES:], *([bits, bits] if base else [bits]), (value, (m, classes)))
    vouched, sent = _unpacked(masks[0], n), _unpacked(masks[-1], n)
    log_p = from_codes(values) if coding is Coding.INT8 else values.astype(np.float64)
    packet = Probe(digest=digest, vouched=vouched, sent=sent, log_p=log_p, coding=coding, base=base)
    return _checked(packet)


def decode_prototypes(body: Body, *, classes: int, width: int) -> Prototypes:
    """The Prototypes in `body`: of at most `classes` classes, `width` values each.  Raises RemoteError."""
    view, (n, h, version) = _opened(
        body, PacketKind.PROTOTYPES, Coding.FLOAT32, classes=classes, most=classes
    )
    _expect(h == width, f"prototypes have {h} values, expected {width}")
    _expect(version == 0, "prototypes have no version")
    _sized(view, prototypes_bytes(n, width=h))
    names, counts, means = _read(view, ("<u2", (n,)), ("<u4", (n,)), ("<f4", (n, h)))
    return _checked(Prototypes(classes=names, counts=counts, means=means, K=classes))


def decode_hub_model(body: Body, *, values: int) -> HubModel:
    """The HubModel in `body`: of exactly `values` values.  Raises RemoteError."""
    view, (m, width, version) = _opened(body, PacketKind.HUB_MODEL, Coding.FLOAT32, classes=0, most=values)
    _expect(m == values and width == 0, f"a hub model of {m} values, expected {values}")
    _sized(view, hub_model_bytes(m))
    (found,) = _read(view, ("<f4", (m,)))
    return _checked(HubModel(values=found, version=version))


def _opened(
    body: Body, kind: PacketKind, coding: Coding, *, classes: int, most: int
) -> tuple[memoryview, tuple[int, int, int]]:
    """The body's bytes, and n, width and version of its prefix, when the rest of it is as expected."""
    view = (body.data if isinstance(body, np.ndarray) else memoryview(body)).cast("B")
    _expect(len(view) >= PREFIX_BYTES, f"a {kind.name} of {len(view)} bytes has no prefix")
    found_kind, found_coding, found_classes, n, width, version = _PREFIX.unpack_from(view)
    _expect(found_kind == kind, f"a packet of kind {found_kind}, expected {kind.name}")
    _expect(
        found_coding == coding, f"a {kind.name} in coding {found_coding}, the agreement has {coding.name}"
    )
    _expect(found_classes == classes, f"a {kind.name} of {found_classes} classes, expected {classes}")
    _expect(1 <= n <= most, f"a {kind.name} of {n} entries, expected 1 to {most}")
    return view, (n, width, version)


def _sized(view: memoryview, expected: int) -> None:
    _expect(len(view) == expected, f"a packet of {len(view)} bytes, its prefix says {expected}")


def _read(view: memoryview, *forms: tuple[str, tuple[int, ...]]) -> list[NDArray[Any]]:
    """Views of the arrays behind the prefix, by type and shape.   The length has been checked."""
    arrays, offset = [], PREFIX_BYTES
    for code, shape in forms:
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(view, code, count, offset).reshape(shape)
        array.flags.writeable = False
        arrays.append(array)
        offset += array.nbytes
    return arrays


def _unpacked(bits: NDArray[np.uint8], n: int) -> NDArray[np.bool_]:
    mask = np.unpackbits(bits, bitorder="little").astype(np.bool_)
    _expect(not mask[n:].any(), "a mask has bits beyond its last sample")
    return mask[:n]


def _checked(packet: _AnyPacket) -> _AnyPacket:
    fault = fault_of(packet)
    _expect(not fault, fault)
    return packet


def _expect(holds: bool, rule: str) -> None:
    if not holds:
        raise RemoteError(rule)


def _joined(prefix: bytes, *arrays: NDArray[Any]) -> NDArray[np.uint8]:
    little = [np.ascontiguousarray(a, a.dtype.newbyteorder("<")).reshape(-1).view(np.uint8) for a in arrays]
    return np.concatenate([np.frombuffer(prefix, np.uint8), *little])
