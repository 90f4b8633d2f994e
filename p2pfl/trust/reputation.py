"""What this site has learned of its neighbours from their models: evidence, a score, a ceiling on trust.

Theory of operation.  Every training round this site measures each neighbour's model twice: its loss on rows
drawn anew from the site's own training rows, which nobody else has, and its place, seen from the site's.
Each is held against what is usual among the models of the round, their median.  A model is *doubted* when it
points away from the site's own where the others do not, when it is four times as far as usual, or when its
loss is beyond what skewed data explain; but not when it does better than the site's own.  Every other model
is approved.  A doubted model is not mixed in that round, whoever sent it.

The evidence on a peer is a Beta(a, b): a counts approvals, b doubts, twice as much each, and faults against
the protocol, five.  Both fade by 5% a round.  The score is the lower 10% quantile: what the peer deserves at
least, with 90% confidence; a newcomer begins at 0.69.

    normal     --score < .55-->  limited  --score < .43-->  quarantine
    quarantine --score >= .53--> limited  --score >= .65--> normal

A peer in quarantine is not mixed; its models are scored all the same, so that it comes back when they deserve
it.  Who equivocates is banned at once, which is none of this file's business.

Invariants.  Reputation only ever lowers the level that the site itself gave a peer, and never that of a
pinned one (`lowered`).  What others say (`report`) raises the score below which a peer is limited, to less
than what a newcomer begins with: any number of slanderers leave a peer without doubts at its level, and none
of them brings it into quarantine.  Newcomers that the same founders admitted take turns until each has a
record (`admitted`): together they weigh what one member weighs, be they two or fifty.

What it cannot see: an attack within the spread of honest models (ALIE), for which there are robust rules; an
attack by half of what a site hears, because it decides what is usual; one where fewer than three models come
in a round, because then nothing is usual.

Source: Josang and Ismail 2002, The Beta Reputation System, sections 2 and 3.2 (evidence, forgetting).  They
read the mean; the quantile, the evidence and the levels are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import StoreError
from p2pfl.ids import PeerId
from p2pfl.trust import beta
from p2pfl.trust.relations import Level

__all__ = [
    "DECAY",
    "TOLERANCE",
    "Doubts",
    "Measured",
    "Record",
    "Reputation",
    "Sample",
    "admitted",
    "ceiling",
    "doubts",
    "explain",
    "fault",
    "forget",
    "from_bytes",
    "has_record",
    "is_doubted",
    "lowered",
    "observe",
    "rename",
    "report",
    "score",
    "to_bytes",
]

# The layout of the stored document; a reader refuses another one instead of guessing.
_VERSION = 1
# What is left of evidence after a round: half of it is from the last 14.
DECAY = 0.95
# Before any evidence: one fault limits a newcomer and does not put it in quarantine (score .44).
_PRIOR = (10.0, 2.0)
# Evidence of one approval, one doubt, one fault.  A liar is out after 3 rounds, one that behaved well long
# before after 11.
_APPROVAL, _DOUBT, _FAULT = 1.0, 2.0, 5.0
# The quantile that is the score.
_CONFIDENCE = 0.1
# Scores below which a peer falls, and above which it rises again: a tenth apart, so that it does not flicker.
_QUARANTINE, _LIMITED, _HYSTERESIS = 0.43, 0.55, 0.1
# A report moves the limit by this, all of them by at most twice as much: below what a newcomer begins with.
_CAUTION, _MOST_CAUTION = 0.05, 0.1
# Rounds that a report counts, about as long as a quarantine without new doubts lasts, and how many are kept.
_REPORT_ROUNDS, _REPORTS = 20, 8
# Approvals, faded ones counted in part, after which a newcomer stands for itself.
_RECORD = 5.0
# A model is doubted above this multiple of the usual distance.  An honest site with few and odd rows may be
# beyond three times the usual in a round of 20, and once doubted drifts further (digits, docs/decisions.md).
TOLERANCE = 4.0
# A model is doubted above this multiple of the usual loss, and so many spreads above it, and further above it
# than that is above the own loss: on skewed data an honest neighbour's may always be 20 times the usual.
_LOSS_FACTOR, _LOSS_SPREADS = 50.0, 4.0
# A model that does better than the site's own by this fraction is not doubted, however far it is: it is this
# site that is behind.  Early on all losses are equal to a hundredth, and that says nothing.
_BETTER = 0.05
# So far below the usual cosine with the site's own model, a model points away, as a flipped sign does.
_AWAY = 1.0
# The standard deviation of a normal distribution in median absolute deviations.
_NORMAL_MAD = 1.4826
# Models to compare one with: with two, either is as unusual as the other.
_LEAST_OTHERS = 3
# Losses and distances below this are equal.
_TINY = 1e-12
# Kinds of faults counted apart; they are words of this program, so there are few.
_FAULT_KINDS = 16


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one round showed of a peer, and the bounds of doubt; None where something was not measured.

    `loss` and `own_loss` are on the same rows.   doubt: "loss", "angle", "distance", or nothing.
    """

    round: int
    distance: float
    cosine: float
    loss: float | None = None
    own_loss: float | None = None
    most_distance: float | None = None
    least_cosine: float | None = None
    most_loss: float | None = None
    doubt: str = ""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The evidence on one peer.  `approvals` and `doubts` fade; the counts below them do not.

    reports: rounds for which each reporter's word still counts.   rule: what gave the level.
    """

    approvals: float = 0.0
    doubts: float = 0.0
    level: Level = Level.NORMAL
    rule: str = "no doubts"
    rounds: int = 0
    by_loss: int = 0
    by_angle: int = 0
    by_distance: int = 0
    faults: dict[str, int] = {}
    reports: dict[str, int] = {}
    last: Sample | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The models of one round, one each of `peers`, as this site sees them.   All float64.

    losses: (k,) NaN where not measured, infinite where a model gave no finite loss.   own_loss: of the site's
    own model on the same rows, NaN when not measured.   distances, cosines: (k,) from the site's own model.
    """

    peers: tuple[PeerId, ...]
    own_loss: float
    losses: NDArray[np.float64]
    distances: NDArray[np.float64]
    cosines: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubts:
    """What is doubted in a round, one word or nothing for each model, and the bounds.

    A bound is None where there is too little to compare.
    """

    words: tuple[str, ...]
    most_loss: float | None
    most_distance: float | None
    least_cosine: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reputation:
    """The records this site has, by peer; who has none is a newcomer without a blemish."""

    records: Mapping[PeerId, Record] = field(default_factory=dict)


def doubts(seen: Measured, tolerance: float = TOLERANCE) -> Doubts:
    """Which of a round's models are doubted, and why.

    tolerance: how many times the usual distance is usual still.
    """
    k, known = len(seen.peers), seen.losses[~np.isnan(seen.losses)]
    most_loss = most_distance = least_cosine = None
    by_loss = by_distance = by_angle = np.zeros(k, np.bool_)
    if math.isfinite(seen.own_loss) and len(known) >= _LEAST_OTHERS:
        logs = _logs(np.append(known, seen.own_loss))
        usual = float(np.median(logs))
        spread = _NORMAL_MAD * float(np.median(np.abs(logs - usual)))
        room = max(math.log(_LOSS_FACTOR), _LOSS_SPREADS * spread, usual - float(logs[-1]))
        most_loss = math.exp(usual + room)
        by_loss = seen.losses > most_loss
    if k >= _LEAST_OTHERS:
        most_distance = tolerance * math.exp(float(np.median(_logs(seen.distances))))
        least_cosine = float(np.median(seen.cosines)) - _AWAY
        by_distance, by_angle = seen.distances > most_distance, seen.cosines < least_cosine
    worse = ~(seen.losses < (1 - _BETTER) * seen.own_loss)
    words = tuple(
        "angle" if angle else "distance" if distance else "loss" if loss else ""
        for angle, distance, loss in zip(worse & by_angle, worse & by_distance, worse & by_loss, strict=True)
    )
    return Doubts(words=words, most_loss=most_loss, most_distance=most_distance, least_cosine=least_cosine)


def _logs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(np.clip(values, _TINY, 1 / _TINY)))


def observe(reputation: Reputation, round_: int, seen: Measured, tolerance: float = TOLERANCE) -> Reputation:
    """`reputation` after a training round in which `seen` was measured.

    All evidence fades, whoever was heard.
    """
    found = doubts(seen, tolerance)
    records = {peer: _faded(record) for peer, record in reputation.records.items()}
    for i, (peer, doubt) in enumerate(zip(seen.peers, found.words, strict=True)):
        is_measured = not math.isnan(seen.losses[i]) and not math.isnan(seen.own_loss)
        last = Sample(
            round=round_,
            distance=float(seen.distances[i]),
            cosine=float(seen.cosines[i]),
            loss=min(float(seen.losses[i]), 1 / _TINY) if is_measured else None,
            own_loss=seen.own_loss if is_measured else None,
            most_distance=found.most_distance,
            least_cosine=found.least_cosine,
            most_loss=found.most_loss if is_measured else None,
            doubt=doubt,
        )
        record = records.get(peer, Record())
        records[peer] = msgspec.structs.replace(
            record,
            approvals=record.approvals + (0.0 if doubt else _APPROVAL),
            doubts=record.doubts + (_DOUBT if doubt else 0.0),
            rounds=record.rounds + 1,
            by_loss=record.by_loss + (doubt == "loss"),
            by_angle=record.by_angle + (doubt == "angle"),
            by_distance=record.by_distance + (doubt == "distance"),
            last=last,
        )
    return Reputation(records={peer: _judged(record) for peer, record in records.items()})


def is_doubted(reputation: Reputation, peer: PeerId, round_: int) -> bool:
    """Whether the model of `peer` was doubted in round `round_`."""
    record = reputation.records.get(peer)
    last = None if record is None else record.last
    return last is not None and last.round == round_ and bool(last.doubt)


def fault(reputation: Reputation, peer: PeerId, kind: str) -> Reputation:
    """`reputation` after `peer` broke the protocol."""
    record = reputation.records.get(peer, Record())
    kind = kind if kind in record.faults or len(record.faults) < _FAULT_KINDS else "other"
    counted = {**record.faults, kind: record.faults.get(kind, 0) + 1}
    record = msgspec.structs.replace(record, doubts=record.doubts + _FAULT, faults=counted)
    return Reputation(records={**reputation.records, peer: _judged(record)})


def report(reputation: Reputation, peer: PeerId, by: PeerId) -> Reputation:
    """`reputation` after `by` said that it holds `peer` in quarantine: a caution, never more.

    Whom this site itself does not fully believe is not listened to.
    """
    record = reputation.records.get(peer, Record())
    if ceiling(reputation, by) < Level.NORMAL or by == peer:
        return reputation
    reports = {**{name: left for name, left in record.reports.items() if name != by}, by: _REPORT_ROUNDS}
    kept = dict(list(reports.items())[-_REPORTS:])
    record = msgspec.structs.replace(record, reports=kept)
    return Reputation(records={**reputation.records, peer: _judged(record)})


def forget(reputation: Reputation, peer: PeerId) -> Reputation:
    """`reputation` without anything about `peer`."""
    return Reputation(records={name: r for name, r in reputation.records.items() if name != peer})


def rename(reputation: Reputation, old: PeerId, new: PeerId) -> Reputation:
    """`reputation` with the record of `old` under the key that took its place."""
    if old not in reputation.records:
        return reputation
    return Reputation(records={(new if name == old else name): r for name, r in reputation.records.items()})


def score(record: Record) -> float:
    """What the peer deserves at least, 0..1, with 90% confidence."""
    return beta.quantile(_CONFIDENCE, _PRIOR[0] + record.approvals, _PRIOR[1] + record.doubts)


def has_record(record: Record | None) -> bool:
    """Whether a newcomer has shown enough to stand for itself."""
    return record is not None and record.approvals >= _RECORD


def ceiling(reputation: Reputation, peer: PeerId) -> Level:
    """The most that `peer`'s record allows."""
    record = reputation.records.get(peer)
    return Level.NORMAL if record is None else record.level


def lowered(own: Level, most: Level) -> Level:
    """The level that counts, of the site's own and a record's ceiling: never above the site's own."""
    return own if own is Level.PINNED else min(own, most)


def admitted(
    reputation: Reputation, peers: Iterable[PeerId], inviters: Mapping[PeerId, tuple[PeerId, ...]], turn: int
) -> frozenset[PeerId]:
    """Those of `peers` that are mixed in round `turn`: of newcomers with the same inviters, one, in turn.

    inviters: the founders that admitted each peer; one without an entry, a founder, is no newcomer.
    """
    waiting: dict[tuple[PeerId, ...], list[PeerId]] = {}
    chosen = set()
    for peer in sorted(peers):
        group = inviters.get(peer)
        if group is None or has_record(reputation.records.get(peer)):
            chosen.add(peer)
        else:
            waiting.setdefault(group, []).append(peer)
    return frozenset(chosen | {group[turn % len(group)] for group in waiting.values()})


def explain(record: Record) -> dict[str, Any]:
    """The record as plain values: every number that the level came from."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    a, b = _PRIOR[0] + record.approvals, _PRIOR[1] + record.doubts
    return {**plain, "level": record.level.name.lower(), "a": a, "b": b, "score": score(record)}


def to_bytes(reputation: Reputation) -> bytes:
    """The records, for this node's own disk."""
    records = {str(peer): reputation.records[peer] for peer in sorted(reputation.records)}
    return msgspec.msgpack.encode([_VERSION, records])


def from_bytes(data: bytes) -> Reputation:
    """What `to_bytes` wrote.  Raises StoreError."""
    try:
        version, records = msgspec.msgpack.decode(data, type=tuple[int, dict[str, Record]])
    except msgspec.MsgspecError as error:
        raise StoreError(f"the stored reputation is damaged: {error}; run `p2pfl node restore`") from error
    if version != _VERSION:
        raise StoreError(f"the stored reputation has layout {version}, this p2pfl reads {_VERSION}")
    return Reputation(records={PeerId(peer): record for peer, record in records.items()})


def _faded(record: Record) -> Record:
    return msgspec.structs.replace(
        record,
        approvals=record.approvals * DECAY,
        doubts=record.doubts * DECAY,
        reports={by: left - 1 for by, left in record.reports.items() if left > 1},
    )


def _judged(record: Record) -> Record:
    """The record with its level as the score and the level so far have it."""
    deserved = score(record)
    limit = _LIMITED + min(_MOST_CAUTION, _CAUTION * len(record.reports))
    falls, rises = _QUARANTINE, limit
    if record.level is Level.QUARANTINE:
        falls += _HYSTERESIS
    if record.level < Level.NORMAL:
        rises += _HYSTERESIS
    if deserved < falls:
        level, rule = Level.QUARANTINE, f"score {deserved:.3f} is below {falls:.2f}"
    elif deserved < rises:
        level, rule = Level.LIMITED, f"score {deserved:.3f} is below {rises:.2f}"
    else:
        level, rule = Level.NORMAL, f"score {deserved:.3f} is at least {rises:.2f}"
    return msgspec.structs.replace(record, level=level, rule=rule)
