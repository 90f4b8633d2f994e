"""The exchange of knowledge in a round: what the policy asks for, carried out between this peer and others.

Theory of operation.  In a training round of a run with an exchange (knowledge/exchange.py), phases A and B
stand where the fit stands otherwise.  The learner gets one job at a time, each with the model as the last one
left it, and what may travel is told as soon as it is made.  Phase A ends when everybody it waits for has
told, or at half of the round's deadline, phase B likewise at the deadline.  Then the model as it is counts as
trained (`Trained`), and the round goes on as any: mixing where the agreement has averaging, one step, one
commit.

What travels here is not conserved and commits to nothing: a packet that is lost is missed for one round, and
a peer that crashes makes its round's packets again.  So packets leave before the round's commit, of which
they reveal nothing; whose were taken is in the audit log all the same.  Where the fit adds noise for the sake
of single rows (`dp-sgd`), what predictions tell of them is paid for in a commit before the first job.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from p2pfl import hubs, releases
from p2pfl.errors import ConfigError, LearnerError, LocalError, RemoteError
from p2pfl.events import Header, Kind, Message, Send, Started, Trained
from p2pfl.gossip.links import WINDOW
from p2pfl.ids import PeerId
from p2pfl.knowing import KINDS, TASKS, Knowing
from p2pfl.knowledge.exchange import Heading, Phase
from p2pfl.knowledge.guard import suspects
from p2pfl.knowledge.hub import HubExchange
from p2pfl.knowledge.kinds import exchange_of
from p2pfl.knowledge.samples import rows_of
from p2pfl.plans import is_apart, neighbours_of
from p2pfl.state import State
from p2pfl.trust.relations import Level
from p2pfl.work import Extracted, Fit, Job, Judged, Result, Work, Worked

__all__ = [
    "absorb",
    "advance",
    "begin",
    "is_on",
    "open_exchange",
    "schema",
    "turn_at",
    "verdict",
    "worked",
]

# The share of a round's deadline after which phase A ends, come what may.
_TURN = 0.5
# Purpose of the draws of jobs (state.seed); the fit's own, 1, is that of every run's fit.
_JOBS = 16
# Bodies of one sender that may be under way: features or labels, a model, and one that is said again.
_UNDER_WAY = WINDOW + 1
_KIND_OF = {packet: kind for kind, packet in KINDS.items()}


def is_on(state: State) -> bool:
    """Whether this run exchanges knowledge."""
    return state.knowing is not None


def open_exchange(state: State, event: Started) -> None:
    """Set up the policy that the agreement names.  Raises ConfigError when the learner cannot serve it."""
    options = state.spec.knowledge
    if options.exchange.kind == "none":
        return
    if event.expected is None:
        raise ConfigError(
            f"knowledge.exchange.kind = {options.exchange.kind!r} and a learner that exchanges nothing;"
            " update the learner, or agree on 'none'"
        )
    exchange = exchange_of(
        options,
        expected=event.expected,
        me=state.me,
        run=state.run,
        last=state.schedule.opening + state.schedule.training - 1,
    )
    assert exchange is not None
    state.knowing = Knowing(
        exchange=exchange, state=exchange.start(), expected=event.expected, secret=state.entropy
    )
    hubs.open_hub(state)


def schema(state: State, event: Started) -> bytes:
    """What sites must have in common: the model's schema, or where no model is mixed what knowledge is of."""
    if not is_apart(state) or event.expected is None:
        return event.schema_hash
    document = f"p2pfl-knowledge/1 {event.expected.classes} {event.expected.width} ".encode()
    return hashlib.sha256(document + event.expected.labels).digest()


# --- the round -----------------------------------------------------------------------------------------


def begin(state: State, learner_state: bytes) -> None:
    """Phase A of `state.round`.   learner_state: for the first job, as of a first fit."""
    knowing = state.knowing
    assert knowing is not None
    assert state.deadline is not None
    if state.spec.trust.privacy.kind != "none":
        # What this round tells of the rows is in the account before it leaves; see releases.py.
        state.commit()
    _revise(state, knowing)
    hubs.announce(state)
    into, out = neighbours_of(state, state.round)
    up = set(state.neighbours.up())
    task = TASKS[Kind.FEATURES if isinstance(knowing.exchange, HubExchange) else Kind.SOFT_LABELS]
    knowing.state = knowing.exchange.begin(
        knowing.state,
        state.round,
        hears=frozenset(p for p in into if p in up and state.consortium.accepts(p, task)),
        tells=frozenset(p for p in out if p in up and state.consortium.may_share(p, task)),
    )
    knowing.theta, knowing.learner_state = state.mass.z(), learner_state
    knowing.number, knowing.is_waiting, knowing.failed, knowing.fault = 0, False, set(), ""
    knowing.metrics, knowing.heard = {}, 0
    knowing.turn_at = state.now + _TURN * (state.deadline - state.now)
    knowing.told = {told for told in knowing.told if told[2] >= state.round - 1}
    knowing.words = [said for said in knowing.words if said.message.header.round >= state.round - 1]
    advance(state)


def turn_at(state: State) -> float | None:
    """When `advance` is to be called if nothing happens before; None when at nothing but the deadline."""
    knowing = state.knowing
    if knowing is None or knowing.theta is None or knowing.is_waiting or knowing.state.phase is Phase.B:
        return None
    return knowing.turn_at if knowing.turn_at > state.now else None


def advance(state: State) -> None:
    """Go on as far as what is here allows: jobs, packets, the other phase, the end of both."""
    knowing = state.knowing
    if knowing is None or knowing.theta is None:
        return
    while True:
        _tell(state, knowing)
        if knowing.is_waiting or _ask(state, knowing):
            return
        is_last = knowing.state.phase is Phase.B
        assert state.deadline is not None
        over = state.now >= (state.deadline if is_last else knowing.turn_at)
        missing = [p for p in sorted(knowing.exchange.awaited(knowing.state)) if _is_awaited(state, p)]
        if missing and not over:
            return
        for peer in missing:
            state.neighbours[peer].late = True
            state.fact("neighbour late", "warning", peer=peer, round=state.round)
        if is_last:
            _end(state, knowing)
            return
        knowing.state = knowing.exchange.turn(knowing.state)
        hubs.note(state)


def worked(state: State, event: Worked) -> None:
    """Take in the answer to a job; one that nobody waits for says nothing."""
    knowing = state.knowing
    if knowing is None or not knowing.is_waiting or event.number != knowing.number - 1:
        return
    knowing.is_waiting = False
    job = _next(knowing)
    fault = event.fault or ("" if event.result is not None else "no result")
    if job is not None and event.result is not None:
        try:
            knowing.state = knowing.exchange.made(knowing.state, _named(state, knowing, event.result))
        except (LocalError, LearnerError) as error:
            fault = str(error)
    if fault and job is not None:
        knowing.failed.add(type(job))
        if isinstance(job, Fit):
            knowing.fault = fault
        else:
            name = type(job).__name__.lower()
            state.fact("knowledge job failed", "warning", round=state.round, job=name, fault=fault)
    before, after = knowing.theta, event.parameters
    if before is not None and after is not None and after.shape == before.shape:
        knowing.theta = after
    knowing.learner_state = event.learner_state or knowing.learner_state
    knowing.metrics |= event.metrics
    if isinstance(event.result, Judged):
        for peer in sorted(suspects(event.result.losses) - {state.me}):
            loss = event.result.losses[peer]
            state.decide("knowledge", peer, "left-out", rule="loss", distance=loss)


def _next(knowing: Knowing) -> Job | None:
    jobs = (job for job in knowing.exchange.jobs(knowing.state) if type(job) not in knowing.failed)
    return next(jobs, None)


def _ask(state: State, knowing: Knowing) -> bool:
    """Give the learner the next job, if there is one."""
    job = _next(knowing)
    if job is None or knowing.theta is None:
        return False
    assert state.deadline is not None
    if isinstance(job, Fit) and job.teacher is not None:
        teacher = replace(job.teacher, ids=rows_of(knowing.names, job.teacher.ids).astype(np.uint64))
        job = replace(job, teacher=teacher)
    purpose = 1 if isinstance(job, Fit) else _JOBS + knowing.number
    state.emit(
        Work(
            round=state.round,
            number=knowing.number,
            job=job,
            parameters=knowing.theta,
            seed=releases.seed(state, purpose) if isinstance(job, Fit) else state.seed(purpose),
            progress=state.schedule.progress(state.round),
            deadline=knowing.turn_at if knowing.state.phase is Phase.A else state.deadline,
            statistics=state.pooled,
            learner_state=b"" if knowing.number else knowing.learner_state,
        )
    )
    knowing.number += 1
    knowing.is_waiting = True
    return True


def _named(state: State, knowing: Knowing, result: Result) -> Result:
    if isinstance(result, Extracted):
        return replace(result, ids=knowing.name(state.run, result.ids))
    return result


def _end(state: State, knowing: Knowing) -> None:
    """Both phases are over: the model as it stands is what training gave."""
    assert knowing.theta is not None
    state.trained = Trained(
        round=state.round,
        parameters=None if knowing.fault else knowing.theta,
        metrics=knowing.metrics,
        learner_state=knowing.learner_state,
        fault=knowing.fault,
    )
    knowing.theta = None
    sent = [said.message.header for said in knowing.words if said.message.header.round == state.round]
    state.fact(
        "knowledge exchanged",
        "debug",
        round=state.round,
        kind=state.spec.knowledge.exchange.kind,
        told=len(sent),
        bytes=sum(header.size for header in sent),
        heard=knowing.heard,
        hub=knowing.hub,
    )


def _is_awaited(state: State, peer: PeerId) -> bool:
    """Whether something may still come: not of who has committed this round, but for what is under way."""
    one = state.neighbours[peer]
    is_in_round = one.round <= state.round and not one.over
    return one.up and not one.late and (is_in_round or any(kind in KINDS for kind, _ in one.fetching))


def _revise(state: State, knowing: Knowing) -> None:
    """The last round of training may have been amended."""
    last = state.schedule.opening + state.schedule.training - 1
    if isinstance(knowing.exchange, HubExchange) and knowing.exchange.last != last:
        knowing.exchange = replace(knowing.exchange, last=last)


# --- packets out -----------------------------------------------------------------------------------------


def _tell(state: State, knowing: Knowing) -> None:
    """Offer what may travel to those who have not been offered it."""
    for offer in knowing.exchange.offers(knowing.state):
        kind = _KIND_OF[offer.kind]
        to = [
            peer
            for peer in offer.recipients
            if (peer, offer.kind, offer.round) not in knowing.told
            and state.neighbours[peer].up
            and state.consortium.may_share(peer, TASKS[kind])
        ]
        if not to:
            continue
        body = offer.body
        digest = hashlib.sha256(body.data).digest()
        for peer in to:
            size = body.nbytes
            header = state.header(
                peer, kind, edge_seq=offer.round + 1, size=size, raw_size=size, digest=digest
            )
            said = Send(peer=peer, message=Message(header=header, body=body))
            knowing.told.add((peer, offer.kind, offer.round))
            knowing.words.append(said)
            state.emit(said)


# --- packets in ------------------------------------------------------------------------------------------


def verdict(state: State, peer: PeerId, header: Header) -> str | None:
    """Why the packet under `header`, of a member that is up, is not to be fetched, or None."""
    knowing = state.knowing
    if knowing is None:
        state.fault(peer, "kind")
        return "kind"
    under_way = state.neighbours[peer].fetching
    if (header.kind, header.edge_seq) in under_way:
        return "have"
    if sum(kind in KINDS for kind, _ in under_way) >= _UNDER_WAY:
        return "rate"
    if state.consortium.accept_level(peer, TASKS[header.kind]) < Level.LIMITED:
        return "not-accepted"
    reason = knowing.exchange.verdict(knowing.state, _heading(peer, header))
    if reason in ("kind", "size") and not _is_hub_talk(knowing, header):
        state.fault(peer, reason)
    held = state.neighbours.fetching_bytes() + state.links.held_bytes() + knowing.held_bytes()
    if reason is None and header.size > state.memory_bytes - held:
        state.fact("memory limit reached", "warning", peer=peer, limit_bytes=state.memory_bytes)
        return "memory"
    return reason


def absorb(state: State, peer: PeerId, header: Header, body: NDArray[np.uint8]) -> None:
    """Take in a packet that was fetched; one that cannot be read is a fault of its sender."""
    knowing = state.knowing
    heading = _heading(peer, header)
    # What was wanted when it was offered may have come by another way since.
    if knowing is None or knowing.exchange.verdict(knowing.state, heading) is not None:
        return
    word = heading.kind.name.lower().replace("_", "-")
    try:
        knowing.state = knowing.exchange.absorb(knowing.state, heading, body)
    except RemoteError as error:
        state.fault(peer, "packet")
        state.fact("packet refused", "warning", peer=peer, kind=word, reason=str(error))
        verdict = "unfit"
    else:
        knowing.heard += 1
        verdict = "taken"
    state.decide("knowledge", peer, verdict, rule=word, seq=header.edge_seq, digest=header.digest)


def _heading(peer: PeerId, header: Header) -> Heading:
    return Heading(sender=peer, round=header.round, kind=KINDS[header.kind], size=header.size)


def _is_hub_talk(knowing: Knowing, header: Header) -> bool:
    """Whether `header` may be meant well all the same: who is whose hub changes as hubs come and go."""
    return isinstance(knowing.exchange, HubExchange) and header.kind in (
        Kind.FEATURES,
        Kind.SOFT_LABELS,
        Kind.HUB_MODEL,
        Kind.PROBE,
    )
