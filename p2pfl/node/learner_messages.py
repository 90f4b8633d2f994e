"""What the daemon and a learner's own process say to each other, and how a message is framed.

A message is a 4-byte little-endian length and one tagged MessagePack map.
"""

import struct
from typing import Any, TypeAlias

import msgspec

from p2pfl.errors import LearnerError
from p2pfl.learn.flat import Schema
from p2pfl.learn.learner import DpSgd
from p2pfl.release import Release
from p2pfl.work import Expected

__all__ = [
    "MAX_MESSAGE_BYTES",
    "LearnerSpec",
    "Begin",
    "Map",
    "Fit",
    "Do",
    "Measure",
    "Score",
    "Request",
    "Built",
    "Mapped",
    "Fitted",
    "Did",
    "Measured",
    "Scored",
    "Failed",
    "Reply",
    "frame",
]

# A learner state is the largest thing in a message: Adam's moments of 100 million parameters are 800 MB.
MAX_MESSAGE_BYTES = 1 << 30


class LearnerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to build a site's learner anywhere: `options` is a LearnerOptions as JSON.

    The rest is as in learn/learner.py's Site.
    """

    options: bytes
    data: str = ""
    name: str = "site"
    seed: int = 0
    dp_sgd: DpSgd | None = None
    role: str = ""
    exchange: str = "none"
    probe_source: str = ""
    probe_digest: str = ""
    probe_samples: int = 0


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Build the learner."""

    spec: LearnerSpec


class Map(msgspec.Struct, frozen=True, tag=True):
    """The memory now has two slots of `d` float32."""

    d: int


class Fit(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`events.Train`, its parameters in the first slot.  seed: decimal, of any size."""

    round: int
    seed: tuple[str, ...]
    progress: float
    statistics: bytes | None
    learner_state: bytes


class Do(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`work.Work`, its parameters in the first slot.  seed: decimal, of any size.   job: packed."""

    round: int
    number: int
    job: Any
    seed: tuple[str, ...]
    progress: float
    statistics: bytes | None
    learner_state: bytes


class Measure(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`events.Evaluate`, its parameters in the first slot."""

    round: int
    statistics: bytes | None
    learner_state: bytes


class Score(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One model of `events.Validate`, in the first slot.  seed: decimal, of any size."""

    seed: tuple[str, ...]
    statistics: bytes | None
    learner_state: bytes


class Built(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`jobs.Ready`; its parameters follow in the second slot with `Mapped`."""

    d: int
    samples: int
    schema_hash: bytes
    statistics: bytes
    schema: Schema | None
    data_set: str
    release: Release | None
    expected: Expected | None


class Mapped(msgspec.Struct, frozen=True, tag=True):
    """The first parameters are in the second slot."""


class Fitted(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`events.Trained`; unless there is a fault, its parameters are in the second slot."""

    round: int
    metrics: dict[str, float]
    learner_state: bytes
    fault: str


class Did(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`work.Worked`, its parameters in the second slot when they changed.   result: packed, or None."""

    round: int
    number: int
    result: Any
    is_changed: bool
    metrics: dict[str, float]
    learner_state: bytes
    fault: str


class Measured(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`events.Evaluated`, and why it has no metrics."""

    round: int
    metrics: dict[str, float]
    fault: str


class Scored(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One loss of `events.Validated`, and why there is none."""

    loss: float
    fault: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The learner could not be built."""

    reason: str


Request: TypeAlias = Begin | Map | Fit | Do | Measure | Score
Reply: TypeAlias = Built | Mapped | Fitted | Did | Measured | Scored | Failed


def frame(message: Request | Reply) -> bytes:
    """`message` with its length in front.  Raises LearnerError above MAX_MESSAGE_BYTES."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise LearnerError(
            f"a message of {len(body)} bytes between node and learner, at most {MAX_MESSAGE_BYTES} are passed"
            " on; return less from state(), or set a smaller knowledge.exchange.most_samples"
        )
    return struct.pack("<I", len(body)) + body
