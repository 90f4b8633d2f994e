"""Shares that are taken in part: what the books of an edge allow, and what comes back, once."""

from __future__ import annotations

import pytest
from edges import INC, A, B, hello, introduce, paired, share
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.events import Ack
from p2pfl.gossip.links import Arrival, Links, Meeting

CREDIT = 0.25
CREDITS: dict[str, float] = {A: CREDIT, B: CREDIT}


def give(a: Links, b: Links, w: float, *, forward: bool = True) -> None:
    """`a` (A, unless not `forward`) sends a share of weight `w`, which arrives."""
    sender, recipient = (A, B) if forward else (B, A)
    header = share(a.edge_to(recipient).sent + 1, w, sender, recipient)
    a.push(recipient, header)
    b.arrive(sender, Arrival(header=header, body=None))


def test_as_much_is_taken_as_was_given_and_the_rest_comes_back_once() -> None:
    a, b = paired()
    give(b, a, CREDIT, forward=False)
    give(a, b, 1.0)
    [(_, arrival)], _ = b.collect(CREDITS)
    assert (arrival.taken, arrival.reason) == (0.25, "")
    assert b.edge_from(A).absorbed_w == 0.25
    ack = b.ack(A)
    assert ack.taken == {1: 0.25}
    [back] = a.acknowledged(B, ack, INC[A])
    assert (back.seq, back.fraction) == (1, 0.75)
    assert a.edge_to(B).sent_w == 0.25
    assert a.acknowledged(B, ack, INC[A]) == []


def test_who_gave_nothing_takes_nothing() -> None:
    a, b = paired()
    give(a, b, CREDIT)
    [(_, arrival)], _ = b.collect(CREDITS)
    assert (arrival.taken, arrival.reason) == (0.0, "capped")
    assert b.ack(A).refused == {1: "capped"}
    [back] = a.acknowledged(B, b.ack(A), INC[A])
    assert back.fraction == 1.0


def test_the_rest_of_a_share_comes_back_by_hello_when_the_acknowledgement_is_lost() -> None:
    a, b = paired()
    give(b, a, CREDIT, forward=False)
    give(a, b, 1.0)
    b.collect(CREDITS)
    verdict, returned, _ = a.meet(B, INC[B], hello(b, A), INC[A])
    assert verdict is Meeting.UP
    assert [(back.seq, back.fraction) for back in returned] == [(1, 0.75)]
    assert a.meet(B, INC[B], hello(b, A), INC[A])[1] == []


def test_who_began_without_mass_is_lent_one_share_by_each() -> None:
    a, b = paired()
    b.entered = 0.0
    give(a, b, 1.0)
    [(_, arrival)], _ = b.collect(CREDITS)
    assert arrival.taken == CREDIT
    give(a, b, 1.0)
    [(_, arrival)], _ = b.collect(CREDITS)
    assert arrival.reason == "capped"


def test_a_peer_that_takes_credit_and_then_refuses_is_one_share_ahead_and_stays_so_under_new_names() -> None:
    a, b = paired()
    incarnation = INC[A]
    gained = 0.0
    for _ in range(5):
        for _ in range(6):
            give(b, a, CREDIT, forward=False)
            give(a, b, 100.0)
            b.collect(CREDITS)
            # What it was given goes back, and what it gave stays here.
            seq = b.edge_to(A).sent
            b.acknowledged(A, Ack(their_incarnation=INC[B], absorbed=seq, refused={seq: "norm"}), INC[B])
            a.acknowledged(B, b.ack(A), incarnation)
        gained = -b.written_off + b.edge_from(A).absorbed_w - b.edge_to(A).sent_w
        assert gained <= CREDIT * (1 + 1e-6)
        incarnation += 1
        a = Links(entered=1.0)
        introduce(a, b, {A: incarnation, B: INC[B]})
    assert gained == pytest.approx(CREDIT)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["give", "take", "settle", "answer", "refuse", "greet"]),
        st.floats(0.01, 0.5),
        st.sampled_from([1e-12, 0.5, 1.0, 3.0, 1e6]),
    ),
    max_size=80,
)


@given(_STEPS)
def test_whatever_a_liar_does_no_more_comes_in_than_went_out_and_one_share(
    steps: list[tuple[str, float, float]],
) -> None:
    """b is honest.  a sends any weight, and answers what b gave by taking it, refusing it, or not at all."""
    a, b = paired()
    held = 10.0
    for what, w, lie in steps:
        match what:
            case "give" if a.is_free(B):
                give(a, b, w * lie)
            case "take" if b.is_free(A):
                w = min(w, CREDIT)
                held -= w
                b.push(A, share(b.edge_to(A).sent + 1, w, B, A))
            case "settle":
                settled, _ = b.collect(CREDITS)
                held += sum(x.taken * x.header.weights[0] for _, x in settled if not x.reason)
            case "answer" | "refuse":
                seq = b.edge_to(A).sent
                refused = dict.fromkeys(range(1, seq + 1), "norm") if what == "refuse" else {}
                ack = Ack(their_incarnation=INC[B], absorbed=seq, refused=refused)
                held += sum(x.fraction * x.header.weights[0] for x in b.acknowledged(A, ack, INC[B]))
            case "greet":
                a.meet(B, INC[B], hello(b, A), INC[A])
            case _:
                pass
        assert held <= 10.0 + CREDIT * (1 + 1e-6)
        assert held == pytest.approx(10.0 - b.edge_to(A).sent_w + b.edge_from(A).absorbed_w, abs=1e-9)
