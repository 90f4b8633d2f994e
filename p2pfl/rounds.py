"""A round of the peer: begin, wait, one step, one commit, then what the commit allows to be said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from p2pfl import capping, edges, exchanges, releases, validation
from p2pfl.aggregation import is_capped, mixer_of
from p2pfl.events import Evaluate, Kind, Message, Send, Statement, Train, Trained
from p2pfl.gossip import push_sum
from p2pfl.gossip.push_sum import PUSH_SUM
from p2pfl.ids import PeerId
from p2pfl.mass import pack
from p2pfl.mixing import mix_states
from p2pfl.plans import is_apart, is_state, neighbours_of, plan_of, wanted
from p2pfl.repeats import RESENDS_PER_DEADLINE
from p2pfl.settlement import settle
from p2pfl.state import Phase, State
from p2pfl.trust import audit
from p2pfl.trust.screening import MIN_WEIGHT

__all__ = [
    "FIT",
    "acknowledge",
    "begin",
    "end_of_wait",
    "holds_mass",
    "is_quorate",
    "is_ready",
    "is_settled",
    "settle_now",
    "split",
    "step",
    "surrender",
]

# Purposes of random draws (state.seed): one number each, for ever.
FIT = 1
# A learner that fails this often in a row is not asked again until someone looks at it.
LEARNER_FAULTS = 3
# Rounds in a row below quorum after which a node pauses.
LOW_ROUNDS = 3
_WEIGHT_HINT = (
    'this site hears too little of what it sends: add links to it, or agree on averaging "push-pull"'
)


def begin(state: State) -> None:
    """Start waiting for round `state.round`, with a fit if it is a training round."""
    state.phase, state.reason = Phase.RUNNING, ""
    edges.publish(state)
    state.asked, state.validated, state.upto, state.barred = None, None, None, {}
    state.round_began_at = state.now
    state.deadline = state.now + state.spec.run.deadline_s
    state.tick = state.now + state.spec.run.deadline_s / RESENDS_PER_DEADLINE
    stage = state.schedule.stage(state.round)
    # Without opening rounds, in a run of one, the own sums are those of all.
    if stage != "opening" and len(state.statistics) and state.pooled is None and state.mass.w > 0:
        state.pooled = state.mass.pooled()
    state.trained = Trained(round=state.round, parameters=None)
    if stage != "training" or state.mass.w == 0 or not releases.afford(state):
        return
    state.trained = None
    state.fit_from = state.mass.z()
    learner_state = b"" if state.learner_restored else state.learner_state
    state.learner_restored = True
    if exchanges.is_on(state):
        exchanges.begin(state, learner_state)
        return
    state.emit(
        Train(
            round=state.round,
            parameters=state.fit_from,
            seed=releases.seed(state, FIT),
            progress=state.schedule.progress(state.round),
            deadline=state.deadline,
            statistics=state.pooled,
            learner_state=learner_state,
        )
    )


def _is_awaited(state: State, peer: PeerId) -> bool:
    return state.neighbours.is_awaited(peer, patiently=state.schedule.stage(state.round) != "training")


def _in_is_open(state: State, peer: PeerId) -> bool:
    """Whether the last word of an awaited in-neighbour is still missing."""
    one = state.neighbours[peer]
    if not _is_awaited(state, peer) or not state.consortium.accepts(peer):
        return False
    if one.round < state.round:
        return True
    if is_state(state):
        return one.state is None or one.state[0] < state.round
    return not state.links.has(peer, one.sent)


def _out_is_open(state: State, peer: PeerId) -> bool:
    """Whether an awaited out-neighbour still owes the answer that frees its edge.

    Only one that is behind is waited for, as for a share: waits then lead from later to earlier rounds, and
    cannot close a circle.  One that is level or ahead answers with its next commit, which may wait for ours.
    """
    one = state.neighbours[peer]
    is_behind = one.up and one.round < state.round
    return is_behind and _is_awaited(state, peer) and not state.links.is_free(peer)


def _missing(state: State) -> Iterator[PeerId]:
    """Those that the step of this round waits for; the first is often all that is asked for."""
    if not is_apart(state):
        if state.round:
            yield from (p for p in neighbours_of(state, state.round - 1)[0] if _in_is_open(state, p))
        yield from (p for p in neighbours_of(state, state.round)[1] if _out_is_open(state, p))
    if state.schedule.is_last_call(state.round):
        yield from _absent(state)


def _absent(state: State) -> Iterator[PeerId]:
    """Members that may come back: met, not connected now, not known to be over, and not given up on."""
    for peer in wanted(state):
        one = state.neighbours[peer]
        if one.met and not (one.up or one.late or one.over) and _is_member(state, peer):
            yield peer


def _is_member(state: State, peer: PeerId) -> bool:
    return state.consortium.standing(peer, state.now) == "member"


def is_settled(state: State) -> bool:
    """Whether all neighbours are through, and every share of theirs or of this peer has found its place."""
    for peer in wanted(state):
        one = state.neighbours[peer]
        has_all = one.over and (state.links.has(peer, one.sent) or not state.consortium.accepts(peer))
        if one.up and not has_all:
            return False
    owed = any(_is_member(state, PeerId(peer)) for peer, _ in state.links.unresolved())
    return not owed and next(_absent(state), None) is None


def is_ready(state: State) -> bool:
    """Whether the step of this round may be taken now."""
    assert state.deadline is not None
    if state.trained is None:
        # The driver owes an answer by the deadline; a driver that fails too is not waited for beyond this.
        return state.now >= state.deadline + state.spec.run.deadline_s
    return state.now >= state.deadline or next(_missing(state), None) is None


def end_of_wait(state: State) -> None:
    """The deadline has passed: whoever is missing is not awaited again until it speaks."""
    for peer in list(_missing(state)):
        state.neighbours[peer].late = True
        state.fact("neighbour late", "warning", peer=peer, round=state.round)


def is_quorate(state: State, number: int, heard: list[PeerId]) -> bool:
    """Whether enough in-neighbours that still take part, and that this site talks to, are in `heard`."""
    before = neighbours_of(state, max(0, number - 1))[0] if number else ()
    into = [p for p in before if not state.neighbours[p].over and _is_member(state, p)]
    return len([p for p in heard if p in into]) >= state.spec.run.quorum * len(into)


def settle_now(state: State) -> int:
    """Settle outside a round: merge, commit, acknowledge.  Returns how many shares were merged."""
    merged, moved = settle(state)
    if moved:
        state.commit()
        acknowledge(state, moved)
    return merged


def acknowledge(state: State, peers: list[PeerId]) -> None:
    """Tell each of `peers` what the last commit settled."""
    for peer in peers:
        if state.neighbours[peer].up:
            state.send(peer, Kind.ACK, state.links.ack(peer))


def _local_step(state: State) -> dict[str, float]:
    trained, start = releases.protected(state), state.fit_from
    fault = "no answer in time" if trained is None else trained.fault
    if trained is None or trained.parameters is None or start is None:
        if fault:
            state.learner_faults += 1
            state.fact("learner failed", "warning", round=state.round, fault=fault)
        return {}
    state.learner_faults = 0
    state.learner_state = trained.learner_state
    state.mass.step(start, trained.parameters, capping.counted(state))
    return dict(trained.metrics)


def split(state: State, targets: list[PeerId], fractions: list[float]) -> list[Send]:
    """Give fractions of the mass to `targets`; the shares are in the outbox, to be sent after the commit."""
    offers: list[Send] = []
    digests: dict[int, bytes] = {}
    for peer, (weights, body) in zip(targets, state.mass.split(fractions), strict=True):
        offers.append(_share(state, peer, weights, body, digests))
    return offers


def _share(
    state: State,
    peer: PeerId,
    weights: tuple[float, ...],
    body: NDArray[np.uint8],
    digests: dict[int, bytes],
) -> Send:
    digest = digests.setdefault(id(body), hashlib.sha256(body.data).digest())
    state.pool.add(digest, body)
    header = state.header(
        peer,
        Kind.SHARE,
        edge_seq=state.links.edge_to(peer).sent + 1,
        schema_hash=state.schema_hash,
        size=body.nbytes,
        raw_size=body.nbytes,
        digest=digest,
        weights=weights,
    )
    state.links.push(peer, header)
    return Send(peer=peer, message=Message(header=header, body=body))


def holds_mass(state: State) -> bool:
    """Whether this peer has mass that others would take: not as states, and not beyond a cap."""
    return state.mass.w > 0 and not is_state(state) and not is_capped(state.spec)


def surrender(state: State, peer: PeerId) -> Send:
    """Give everything to `peer`."""
    return _share(state, peer, *state.mass.surrender(), {})


def _offers(state: State) -> list[Send]:
    """Split over the plan's out-edges that are up, wanted on both sides, and free."""
    plan, members = plan_of(state, state.round)
    if state.me not in members or is_apart(state):
        return []
    i = members.index(state.me)
    if is_state(state):
        body = pack(state.mass.state)
        digest = hashlib.sha256(body.data).digest()
        return [
            _state_message(state, members[j], body, digest)
            for j in plan.out_neighbours(i)
            if state.neighbours[members[j]].up and state.consortium.may_share(members[j])
        ]
    given = list(zip(plan.out_neighbours(i), plan.fractions(i)[1], strict=True))
    if is_capped(state.spec):
        given = capping.parts(plan, i)
    pairs = [
        (members[j], c)
        for j, c in given
        if state.neighbours[members[j]].up
        and state.consortium.may_share(members[j])
        and validation.objection(state, members[j]) != "doubted"
        and state.links.edge_to(members[j]).accepting
        and state.links.is_free(members[j])
    ]
    # What a neighbour would have to refuse stays here.
    pairs = capping.givable(state, [(p, c) for p, c in pairs if c * state.mass.w >= MIN_WEIGHT])
    return split(state, [p for p, _ in pairs], [c for _, c in pairs])


def _state_message(state: State, peer: PeerId, body: NDArray[np.uint8], digest: bytes) -> Send:
    header = state.header(
        peer,
        Kind.STATE,
        edge_seq=state.round + 1,
        schema_hash=state.schema_hash,
        size=body.nbytes,
        raw_size=body.nbytes,
        digest=digest,
    )
    return Send(peer=peer, message=Message(header=header, body=body))


def _state_the_round(state: State, offers: list[Send], w_before: float) -> list[Send]:
    """Extend the chain by one statement about this round, addressed to everyone who is up."""
    number = 0 if state.head is None else state.head.number + 1
    secret = hashlib.sha256(state.entropy + number.to_bytes(8, "big")).digest()
    salts = {o.peer: hashlib.sha256(secret + o.peer.encode()).digest() for o in offers}
    content = audit.link(
        number=number,
        prev=b"" if state.head is None else state.head.hash,
        run=state.run,
        sender=state.me,
        incarnation=state.incarnation,
        boot_session=state.boot_session,
        round=state.round,
        commitments=[
            audit.commit(
                salts[o.peer],
                o.peer,
                o.message.header.edge_seq,
                o.message.header.digest,
                o.message.header.weights,
            )
            for o in offers
        ],
        weight_before=w_before,
        weight_after=state.mass.w,
        model_digest=state.digest_of_model(),
        log_head=state.log.hash,
    )
    state.statement, state.head = content, audit.head_of(content)
    said = []
    for peer in state.neighbours.up():
        header = state.header(peer, Kind.STATEMENT, edge_seq=state.links.edge_to(peer).sent)
        body = Statement(content=content, salt=salts.get(peer, b""))
        said.append(Send(peer=peer, message=Message(header=header, body=body)))
    return said


def step(state: State) -> None:
    """Take the step of this round, commit it, say what may be said, and move to the next round."""
    number, stage, began = state.round, state.schedule.stage(state.round), state.round_began_at
    into = neighbours_of(state, max(0, number - 1))[0] if number else ()
    heard = [p for p in into if state.neighbours[p].up and not state.neighbours[p].late]
    moved: list[PeerId] = []
    validation.judge(state)
    if is_apart(state):
        merged = 0
    elif is_state(state):
        merged = mix_states(state)
    else:
        merged, moved = settle(state, in_round=True)
    w_before = state.mass.w
    metrics = _local_step(state)
    offers = _offers(state)
    words = _state_the_round(state, offers, w_before)
    state.round = min(state.neighbours.next_round(number, state.voices()), state.schedule.total)
    state.low_rounds = 0 if is_quorate(state, number, heard) else state.low_rounds + 1
    links = state.links
    state.fact(
        "round committed",
        round=number,
        training_round=number - state.schedule.opening,
        stage=stage,
        peers=len(heard),
        neighbours=len(into),
        merged=merged,
        sent=len(offers),
        seconds=state.now - began,
        w=state.mass.w,
        held=w_before,
        weight0=state.nominal,
        in_flight=links.in_flight_w(),
        entered=links.entered,
        written_off=links.written_off,
        model=state.digest_of_model().hex(),
        statement=state.head.hash.hex() if state.head else "",
        aggregate=state.aggregate,
        epsilon=state.epsilon,
        loss=metrics.get("loss", metrics.get("train_loss")),
        metrics=metrics,
    )
    # Push-pull divides no model by its weight; capped shares have an alarm of their own.
    is_divided = mixer_of(state.spec) is PUSH_SUM
    capping.check_drain(state, w_before)
    # Before the split: who has many neighbours keeps little of a fair weight after it.
    is_low = is_divided and push_sum.alarm(w_before, state.nominal)
    if is_low and not state.weight_is_low:
        state.fact(
            "weight low",
            "warning",
            round=number,
            w=w_before,
            weight0=state.nominal,
            hint=_WEIGHT_HINT,
        )
    state.weight_is_low = is_low
    state.commit()
    acknowledge(state, moved)
    state.barred = {}
    known = () if state.knowing is None else state.knowing.words
    state.last_words = [*words, *(o for o in offers if o.message.header.kind is Kind.STATE), *known]
    for said in (*offers, *words):
        state.emit(said)
    if stage == "training" and (number + 1 - state.schedule.opening) % state.spec.run.evaluate_every == 0:
        state.emit(Evaluate(round=number, parameters=state.mass.z(), statistics=state.pooled))
