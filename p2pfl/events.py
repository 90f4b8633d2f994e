"""What a Peer hears (Event) and what it asks for (Effect).

Promises, kept by `Peer` and relied on by its drivers:

1. Effects are ordered, and a driver carries them out in that order.
2. A `Commit` precedes every `Send` that reveals what it holds.  A driver that crashes between two effects
   loses the later ones and nothing else.
3. Handling is total: any event, in any state, gives a list of effects and never raises.
4. The same seed and the same events at the same times give the same bytes.

Arrays inside events and effects are handles: whoever receives one does not write to it.  Packets of
knowledge (FEATURES and on) commit to nothing, and go out before their round's Commit.

Messages, what carries them, and facts are msgspec structs, as frozen as the other values: a simulator makes
several of them an event, and a header as a dataclass took six times as long to make.  They hold no
reference to each other in a circle, so the collector need not look at them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pfl.ids import PeerId, RunId
from p2pfl.release import Release
from p2pfl.work import Expected, Work, Worked

__all__ = [
    "Vector", "Metrics", "Kind", "Header", "Hello", "Ack", "Statement", "Notice", "Roster", "Body",
    "Message", "Snapshot", "Fact", "Started", "Trained", "Evaluated", "Validated", "Offered", "Received",
    "Faulted", "Connected", "Disconnected", "Commanded", "Event", "Train", "Evaluate", "Validate", "Commit",
    "Note", "Send", "Fetch", "Refuse", "Dial", "HangUp", "Penalise", "Finish", "Effect",
]  # fmt: skip

Vector: TypeAlias = NDArray[np.float32]
Metrics: TypeAlias = Mapping[str, float]


class Kind(IntEnum):
    """What a message is.  The numbers are on the wire: never reuse one."""

    HELLO = 1
    SHARE = 2
    STATE = 3
    STATEMENT = 4
    ACK = 5
    NOTICE = 6
    ROSTER = 7
    FEATURES = 8
    SOFT_LABELS = 9
    PROBE = 10
    PROTOTYPES = 11
    HUB_MODEL = 12


class Header(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The one header of every message; docs/protocol.md gives the integer keys and limits.

    `size` and `digest` (SHA-256) are of the body as sent, `raw_size` of the body decoded; `net.messages.seal`
    fills them for structured bodies, the peer for vectors.
    """

    version: int = 1
    run: RunId
    epoch: int = 0
    sender: PeerId
    recipient: PeerId
    incarnation: int
    boot_session: int
    kind: Kind
    round: int
    edge_seq: int = 0
    schema_hash: bytes = b""
    codec: str = "none"
    size: int = 0
    raw_size: int = 0
    digest: bytes = b""
    weights: tuple[float, ...] = ()
    issued_at: float


class Hello(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """First on every connection: where I stand in the run, and where I believe our two edges stand.

    `their_incarnation` is the recipient's as last known here (0: never met).  `absorbed` is the watermark of
    its shares here and `refused` the verdicts just below it; `sent` and `acked` are of my shares to it, and
    `base` is where their numbers began for this incarnation of the recipient.  `counted`: the recipient, as
    that incarnation, was among the members that I began the run with.  `taken`: see Ack.
    """

    agreement: str
    begun: bool
    phase: str
    initial_digest: bytes
    their_incarnation: int
    absorbed: int
    refused: tuple[int, ...] = ()
    sent: int
    acked: int
    base: int = 0
    accepts: bool = True
    roster_digest: bytes = b""
    counted: bool = False
    taken: Mapping[int, float] = {}


class Ack(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Shares of `their_incarnation` up to `absorbed` are settled: `refused` for a reason, `taken` in part."""

    their_incarnation: int
    absorbed: int
    refused: Mapping[int, str] = {}
    taken: Mapping[int, float] = {}


class Statement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One link of a peer's signed chain, one `content` for all; `salt` opens the recipient's commitment."""

    content: bytes
    salt: bytes = b""


class Notice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A reason in one word and a sentence.

    `accepted`, `not-accepted`: whether the sender mixes the recipient's updates.   `left`, `finished`: the
    sender takes no further part.   `retired`: the recipient is to begin anew.   `greet`: say HELLO again.
    `run-mismatch`: the agreements differ, and where.   `hub`: what hub the sender is (knowledge/ranking.py).
    """

    code: str
    text: str = ""


class Roster(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Signed records of a run's membership (trust/) and address records (net/), each in its own encoding."""

    certificates: tuple[bytes, ...] = ()
    revocations: tuple[bytes, ...] = ()
    addresses: tuple[bytes, ...] = ()
    successions: tuple[bytes, ...] = ()
    amendments: tuple[bytes, ...] = ()


# SHARE and STATE carry raw little-endian bytes, float64 statistics and float32 parameters; the kinds from
# FEATURES on carry packets of knowledge/bodies.py.
Body: TypeAlias = Hello | Ack | Statement | Notice | Roster | NDArray[np.uint8]


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A header and its body."""

    header: Header
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a restart needs: large arrays by name, the rest as one MessagePack document, and what was
    ever released about the site's rows (an Account of trust/privacy.py), which outlives runs.
    """

    arrays: Mapping[str, NDArray[Any]]
    ledger: bytes
    account: bytes = b""


class Fact(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Something worth a log line or a table row: a lowercase phrase, and its data."""

    event: str
    level: str = "info"
    fields: Mapping[str, Any] = {}


# --- what a Peer hears -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The driver is ready; `snapshot` is what the last Commit held, None on an empty disk.

    `parameters`: of the learner as it was built.   `statistics`: the site's own sums to pool, empty where
    none are.   `account` names its rows, and what any run released about them.   `release`: of a fit whose
    learner adds the noise itself.   `expected`: of the knowledge it can give, None where none is exchanged.
    """

    snapshot: Snapshot | None
    parameters: Vector
    samples: int
    schema_hash: bytes
    statistics: NDArray[np.float64]
    account: bytes = b""
    release: Release | None = None
    expected: Expected | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The fit of `round` gave `parameters`, or `fault` and none; `learner_state` is for after a restart."""

    round: int
    parameters: Vector | None
    metrics: Metrics = field(default_factory=dict)
    learner_state: bytes = b""
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The evaluation asked for in `round` gave `metrics` (empty when it failed)."""

    round: int
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """The losses asked for in `round`, one a model: NaN where not measured, infinite where not finite."""

    round: int
    losses: NDArray[np.float64]


class Offered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A verified header whose body waits at the sender."""

    peer: PeerId
    header: Header


class Received(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A verified message from `peer`, whole.  `frame`: of a STATEMENT, as it travelled, for a proof."""

    peer: PeerId
    message: Message
    frame: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faulted:
    """`peer` sent something that could not be understood, or a fetch from it failed (then with `header`)."""

    peer: PeerId
    reason: str
    header: Header | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A connection to a member is open; nothing but our HELLO may go out until its HELLO is in."""

    peer: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The connection is gone, and with it whatever was under way on it."""

    peer: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Commanded:
    """The site's own people ask: `leave`, `ban`, `admit`, `set`, `pause`, `resume`."""

    verb: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


_Answer: TypeAlias = Started | Trained | Worked | Evaluated | Validated
Event: TypeAlias = _Answer | Offered | Received | Faulted | Connected | Disconnected | Commanded


# --- what a Peer asks for ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Fit from `parameters`; answer `Trained` by `deadline`, with partial work or a fault if need be.

    `statistics`: the federation's sums, where they are pooled.   `learner_state`: on the first fit after a
    restart.   `progress`: the share of rounds done, 0..1.
    """

    round: int
    parameters: Vector
    seed: tuple[int, ...]
    progress: float
    deadline: float
    statistics: NDArray[np.float64] | None = None
    learner_state: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Measure `parameters` on the site's own test rows; answer `Evaluated`."""

    round: int
    parameters: Vector
    statistics: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validate:
    """Measure the loss of each of `models` on the same training rows, drawn by `seed`; answer `Validated`."""

    round: int
    models: tuple[Vector, ...]
    seed: tuple[int, ...]
    deadline: float
    statistics: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Make `snapshot` durable, then go on, and with it `decisions` (trust/decisions.py) and `proofs` of who
    equivocated (trust/audit.py), which never change again.  `facts` are the round's row and log lines.
    """

    snapshot: Snapshot
    facts: tuple[Fact, ...] = ()
    decisions: tuple[bytes, ...] = ()
    proofs: tuple[tuple[PeerId, bytes], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Facts that need no commit: log them."""

    facts: tuple[Fact, ...]


class Send(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Deliver to a connected peer; large bodies are offered by their header first."""

    peer: PeerId
    message: Message


class Fetch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bring the body of an offered header; answer `Received` or `Faulted`."""

    peer: PeerId
    header: Header


class Refuse(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Do not bring the body of an offered header."""

    peer: PeerId
    header: Header
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """Reach a member that is not connected, at any of `addresses`."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUp:
    """Close the connection to `peer`."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalise:
    """`peer` broke the protocol: record it."""

    peer: PeerId
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The run is over for this peer: `done`, `left` or `revoked`."""

    reason: str


_Task: TypeAlias = Train | Work | Evaluate | Validate | Commit | Note | Finish
Effect: TypeAlias = _Task | Send | Fetch | Refuse | Dial | HangUp | Penalise
