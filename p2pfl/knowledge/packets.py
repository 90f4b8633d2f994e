"""What travels when weights do not: five packets, what holds of each, and their exact sizes in bytes.

`n` samples, `K` classes, `d` hidden values of a sample, `h` values of a prototype.  Sample ids rise, so that
one packet has one spelling, no name is there twice, and the order of a site's rows is not told.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pfl.encoding import DIGEST_BYTES
from p2pfl.knowledge.beliefs import LOGIT_FLOOR, PROBE_FLOOR
from p2pfl.knowledge.samples import ID_BYTES, Ids

__all__ = [
    "PREFIX_BYTES",
    "MAX_VERSION",
    "MAX_CLASSES",
    "MAX_HIDDEN",
    "PacketKind",
    "Coding",
    "Features",
    "SoftLabels",
    "Probe",
    "Prototypes",
    "HubModel",
    "Packet",
    "features_bytes",
    "soft_labels_bytes",
    "probe_bytes",
    "prototypes_bytes",
    "hub_model_bytes",
    "quantised",
    "hidden_of",
    "label_type",
    "fault_of",
]

# kind, coding, classes, n, width, version: bodies.py.
PREFIX_BYTES = 16
# Rounds on the wire: four bytes.
MAX_VERSION = 2**32 - 1
# The classes of a problem: two bytes.
MAX_CLASSES = 2**16 - 1
# A hidden value's largest size.  Normalised layers give values near 1; squares of this still have room for
# any sum in float32, so no sender can turn a hub's model into infinities.
MAX_HIDDEN = 1e6
# Labels of one byte as long as that is enough.
_BYTE_CLASSES = 256
# float32, int8, float16: bytes of one value.
_FLOAT32, _FLOAT16, _LABEL_WIDE, _COUNT, _CLASS = 4, 2, 2, 4, 2
# The largest code of a hidden value; -128 is not used, so that the range is symmetric.
_INT8_MAX = 127


class PacketKind(IntEnum):
    """What a body is.  The numbers are on the wire: never reuse one."""

    FEATURES = 1
    SOFT_LABELS = 2
    PROBE = 3
    PROTOTYPES = 4
    HUB_MODEL = 5


class Coding(IntEnum):
    """How hidden values or predictions are spelt.  The numbers are on the wire: never reuse one."""

    FLOAT32 = 0
    INT8 = 1
    FLOAT16 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """An edge's samples as its hub sees them (FedGKT, eq. 8).

    ids: (n,) rising.   hidden: (n, d) float32, or int8 with a scale each; `hidden_of` gives the values.
    scales: (n,) float32, None where hidden is float32.   z: (n, K) float16, the edge's own log-probabilities,
    in LOGIT_FLOOR..0.   labels: (n,).   version: of the extractor, the round in which it last changed.
    """

    ids: Ids
    hidden: NDArray[np.float32] | NDArray[np.int8]
    scales: NDArray[np.float32] | None = None
    z: NDArray[np.float16]
    labels: NDArray[np.uint16]
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftLabels:
    """A hub's answer: (n,) rising ids, and z, (n, K) float16 log-probabilities in LOGIT_FLOOR..0.

    version: the round of the hub's model.
    """

    ids: Ids
    z: NDArray[np.float16]
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Predictions on the samples of a probe set that both sides hold.

    digest: the probe set's SHA-256.   vouched: (n,) bool, the samples that the sender holds to be in its
    distribution.   sent: (n,) bool, those whose prediction is here, some of `vouched`; the others of
    `vouched` are as they stood after the sender's packet of round base - 1.   log_p: (m, K) in
    PROBE_FLOOR..0, a row for each of `sent`.   base: 0 when the packet stands alone; then sent = vouched.
    """

    digest: bytes
    vouched: NDArray[np.bool_]
    sent: NDArray[np.bool_]
    log_p: NDArray[np.float64]
    coding: Coding = Coding.INT8
    base: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prototypes:
    """The mean embedding of each class that a site has (FedProto).

    classes: (n,) rising, below K.   counts: (n,), samples behind each mean, at least 1.   means: (n, h).
    K: how many classes there are.
    """

    classes: NDArray[np.uint16]
    counts: NDArray[np.uint32]
    means: NDArray[np.float32]
    K: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A hub's model, for the other hubs of its tier, or for its edges to keep.

    values: (m,) float32.   version: the round of the hub's model.
    """

    values: NDArray[np.float32]
    version: int = 0


Packet: TypeAlias = Features | SoftLabels | Probe | Prototypes | HubModel


# --- sizes -------------------------------------------------------------------------------------------


def features_bytes(n: int, *, width: int, classes: int, coding: Coding) -> int:
    """Bytes of a Features body: 16 + n (8 + 4 d, or d + 4 as int8, + 2 K + 1, or 2 from 257 classes on).

    >>> features_bytes(100, width=16 * 14 * 14, classes=10, coding=Coding.INT8)
    316916
    """
    hidden = width + _FLOAT32 if coding is Coding.INT8 else _FLOAT32 * width
    return PREFIX_BYTES + n * (ID_BYTES + hidden + _FLOAT16 * classes + _label_bytes(classes))


def soft_labels_bytes(n: int, *, classes: int) -> int:
    """Bytes of a SoftLabels body: 16 + n (8 + 2 K)."""
    return PREFIX_BYTES + n * (ID_BYTES + _FLOAT16 * classes)


def probe_bytes(n: int, *, rows: int, classes: int, coding: Coding, is_delta: bool = False) -> int:
    """Bytes of a Probe body on a set of n samples with predictions for `rows` of them.

    16 + 32 + ceil(n / 8), once more for a delta, + rows K, twice that as float16.
    """
    bits = -(-n // 8) * (2 if is_delta else 1)
    return PREFIX_BYTES + DIGEST_BYTES + bits + rows * classes * (1 if coding is Coding.INT8 else _FLOAT16)


def prototypes_bytes(n: int, *, width: int) -> int:
    """Bytes of a Prototypes body of n classes: 16 + n (2 + 4 + 4 h)."""
    return PREFIX_BYTES + n * (_CLASS + _COUNT + _FLOAT32 * width)


def hub_model_bytes(m: int) -> int:
    """Bytes of a HubModel body of m values: 16 + 4 m."""
    return PREFIX_BYTES + _FLOAT32 * m


# --- hidden values -----------------------------------------------------------------------------------


def quantised(hidden: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(n, d) as int8 with one scale a sample: off by at most half a scale, the largest |value| / 127.

    >>> quantised(np.array([[1.27, -0.635, 0.0]], np.float32))[0].tolist()
    [[127, -64, 0]]
    """
    scales = (np.abs(hidden).max(axis=1, initial=0.0) / _INT8_MAX).astype(np.float32)
    codes = np.rint(hidden / np.where(scales > 0, scales, 1)[:, None])
    return np.clip(codes, -_INT8_MAX, _INT8_MAX).astype(np.int8), scales


def hidden_of(features: Features) -> NDArray[np.float32]:
    """The hidden values, (n, d) float32."""
    if features.scales is None:
        return features.hidden.astype(np.float32, copy=False)
    values: NDArray[np.float32] = features.hidden * features.scales[:, None]
    return values


# --- what holds of every packet, ours and theirs ---------------------------------------------------------


def fault_of(packet: Packet) -> str:
    """What is wrong with `packet`, empty when nothing is."""
    checks: tuple[tuple[bool, str], ...]
    match packet:
        case Features():
            n, K = packet.z.shape
            is_shaped = packet.ids.shape == packet.labels.shape == (n,) == packet.hidden.shape[:1]
            checks = (
                (n > 0 and 0 < K <= MAX_CLASSES, "there is no sample, or no class, or too many classes"),
                (0 <= packet.version <= MAX_VERSION, "a version out of range"),
                (
                    is_shaped and packet.hidden.ndim == 2,
                    "ids, hidden values, logits and labels differ in length",
                ),
                (packet.scales is None or packet.scales.shape == (n,), "a scale for each sample is missing"),
                (packet.hidden.dtype == (np.float32 if packet.scales is None else np.int8), "the wrong type"),
                (
                    packet.scales is None or _is_within(packet.scales, 0.0, MAX_HIDDEN / _INT8_MAX),
                    "scales out of range",
                ),
                (
                    _is_within(packet.hidden, -MAX_HIDDEN, MAX_HIDDEN),
                    f"hidden values are not in +-{MAX_HIDDEN:g}",
                ),
                (bool((packet.labels < K).all()), "a label is of no class"),
                (_is_rising(packet.ids), "sample ids do not rise"),
                (_is_within(packet.z, LOGIT_FLOOR, 0.0), f"logits are not in {LOGIT_FLOOR:g}..0"),
            )
        case SoftLabels():
            checks = (
                (0 <= packet.version <= MAX_VERSION, "a version out of range"),
                (
                    packet.ids.shape == packet.z.shape[:1] and packet.ids.size > 0,
                    "one row an id, and one at least",
                ),
                (_is_rising(packet.ids), "sample ids do not rise"),
                (_is_within(packet.z, LOGIT_FLOOR, 0.0), f"logits are not in {LOGIT_FLOOR:g}..0"),
            )
        case Probe():
            checks = (
                (0 <= packet.base <= MAX_VERSION, "a base out of range"),
                (len(packet.digest) == DIGEST_BYTES, "the digest of a probe set has 32 bytes"),
                (packet.sent.shape == packet.vouched.shape, "the two masks differ in length"),
                (not (packet.sent & ~packet.vouched).any(), "predictions that are not vouched for"),
                (
                    packet.log_p.shape[0] == packet.sent.sum(),
                    "not one prediction for each sample of the mask",
                ),
                (bool(packet.base) or bool((packet.sent == packet.vouched).all()), "rows are missing"),
                (_is_within(packet.log_p, PROBE_FLOOR, 0.0), f"predictions are not in {PROBE_FLOOR:g}..0"),
            )
        case Prototypes():
            checks = (
                (packet.classes.shape == packet.counts.shape == packet.means.shape[:1], "lengths differ"),
                (packet.classes.size > 0, "there is no class"),
                (_is_rising(packet.classes), "classes do not rise"),
                (bool((packet.classes < packet.K).all()), "a class that does not exist"),
                (bool((packet.counts > 0).all()), "a mean of no samples"),
                (_is_within(packet.means, -MAX_HIDDEN, MAX_HIDDEN), f"means are not in +-{MAX_HIDDEN:g}"),
            )
        case HubModel():
            checks = (
                (0 <= packet.version <= MAX_VERSION, "a version out of range"),
                (packet.values.ndim == 1 and packet.values.size > 0, "a model without a value"),
                (
                    _is_within(packet.values, -MAX_HIDDEN, MAX_HIDDEN),
                    f"a model's values are not in +-{MAX_HIDDEN:g}",
                ),
            )
    return next((rule for holds, rule in checks if not holds), "")


def _is_rising(values: NDArray[Any]) -> bool:
    return bool((values[1:] > values[:-1]).all())


def _is_within(values: NDArray[Any], least: float, most: float) -> bool:
    # NaN is in no range, and an empty array in any.
    return not values.size or bool(values.min() >= least and values.max() <= most)


def label_type(classes: int) -> str:
    """The type of a label on the wire: one byte while that is enough."""
    return "<u1" if classes <= _BYTE_CLASSES else "<u2"


def _label_bytes(classes: int) -> int:
    return 1 if classes <= _BYTE_CLASSES else _LABEL_WIDE
