"""Exactly-once delivery: outbox, watermark, HELLO, and what a lost or restored disk does to them."""

import pytest
from edges import INC, A, B, hello, introduce, paired, share
from msgspec.structs import replace

from p2pfl.events import Ack
from p2pfl.gossip.links import WINDOW, Arrival, Links, Meeting, Place


def test_two_peers_that_never_met_are_up_after_one_hello_each() -> None:
    a, b = paired()
    assert a.edge_to(B).incarnation == INC[B]
    assert b.edge_from(A).incarnation == INC[A]


def test_a_share_is_settled_once_however_often_it_arrives() -> None:
    a, b = paired()
    a.push(B, share(1))
    for _ in range(3):
        b.arrive(A, Arrival(header=share(1), body=None))
    merged, moved = b.collect()
    assert [arrival.header.edge_seq for _, arrival in merged] == [1]
    assert moved == [A]
    assert b.place(A, 1) is Place.HAVE
    assert b.edge_from(A).absorbed_w == 0.25
    assert a.acknowledged(B, b.ack(A), INC[A]) == []
    assert a.in_flight_w() == 0.0


def test_shares_are_settled_in_order_even_when_the_second_comes_first() -> None:
    a, b = paired()
    a.push(B, share(1))
    a.push(B, share(2))
    b.arrive(A, Arrival(header=share(2), body=None))
    assert b.collect() == ([], [])
    assert not b.has(A, 2)
    b.arrive(A, Arrival(header=share(1), body=None))
    assert b.has(A, 2)
    merged, _ = b.collect()
    assert [arrival.header.edge_seq for _, arrival in merged] == [1, 2]


def test_an_edge_holds_a_window_of_shares_and_a_receiver_no_more() -> None:
    a, b = paired()
    for seq in range(1, WINDOW + 1):
        assert a.is_free(B)
        a.push(B, share(seq))
    assert not a.is_free(B)
    with pytest.raises(AssertionError):
        a.push(B, share(WINDOW + 1))
    assert b.place(A, WINDOW) is Place.NEW
    assert b.place(A, WINDOW + 1) is Place.AHEAD


def test_a_refused_share_comes_back_to_its_sender_with_its_weight() -> None:
    a, b = paired()
    a.push(B, share(1))
    a.push(B, share(2, w=0.5))
    b.arrive(A, Arrival(header=share(1), body=None, reason="norm"))
    b.arrive(A, Arrival(header=share(2, w=0.5), body=None))
    settled, _ = b.collect()
    assert [(arrival.header.edge_seq, arrival.reason) for _, arrival in settled] == [(1, "norm"), (2, "")]
    returned = a.acknowledged(B, b.ack(A), INC[A])
    assert [entry.seq for entry in returned] == [1]
    assert a.edge_to(B).sent_w == 0.5
    assert b.edge_from(A).absorbed_w == 0.5


def test_a_lost_acknowledgement_is_made_up_for_by_the_next_hello() -> None:
    a, b = paired()
    a.push(B, share(1))
    a.push(B, share(2))
    b.arrive(A, Arrival(header=share(1), body=None, reason="norm"))
    b.collect()
    verdict, returned, changed = a.meet(B, INC[B], hello(b, A), INC[A])
    assert (verdict, changed) == (Meeting.UP, False)
    assert [entry.seq for entry in returned] == [1]
    assert [entry.seq for _, entry in a.unresolved()] == [2]


def test_an_acknowledgement_for_another_incarnation_or_from_the_future_changes_nothing() -> None:
    a, _ = paired()
    a.push(B, share(1))
    for ack in (Ack(their_incarnation=99, absorbed=1), Ack(their_incarnation=INC[A], absorbed=7)):
        assert a.acknowledged(B, ack, INC[A]) == []
    assert len(a.edge_to(B).entries) == 1


def test_what_came_since_waits_and_what_is_doubted_goes_back() -> None:
    a, b = paired()
    a.push(B, share(1))
    a.push(B, share(2))
    b.arrive(A, Arrival(header=share(1), body=None))
    upto = b.reach()
    b.arrive(A, Arrival(header=share(2), body=None))
    assert [arrival.header.edge_seq for arrival in b.held(A, upto)] == [1]
    b.refuse(A, "doubted", upto)
    assert [arrival.header.edge_seq for arrival in b.held(A)] == [2]
    settled, _ = b.collect(upto=upto)
    assert [(arrival.header.edge_seq, arrival.reason) for _, arrival in settled] == [(1, "doubted")]
    # The edge stays in the sender's plan: a peer in quarantine is still heard.
    assert [entry.seq for entry in a.acknowledged(B, b.ack(A), INC[A])] == [1]
    assert a.edge_to(B).accepting
    settled, _ = b.collect()
    assert [(arrival.header.edge_seq, arrival.reason) for _, arrival in settled] == [(2, "")]


def test_not_accepted_takes_the_edge_out_of_the_plan() -> None:
    a, b = paired()
    a.push(B, share(1))
    b.arrive(A, Arrival(header=share(1), body=None, reason="not-accepted"))
    b.collect()
    a.acknowledged(B, b.ack(A), INC[A])
    assert not a.edge_to(B).accepting


def test_a_lost_disk_is_written_off_from_the_scalars() -> None:
    a, b = paired()
    a.push(B, share(1, w=0.25))
    b.arrive(A, Arrival(header=share(1, w=0.25), body=None))
    b.collect()
    a.acknowledged(B, b.ack(A), INC[A])
    a.push(B, share(2, w=0.125))
    b.push(A, share(1, w=0.5, sender=B, recipient=A))
    a.arrive(B, Arrival(header=share(1, w=0.5, sender=B, recipient=A), body=None))
    a.collect()
    reborn = {**INC, B: 23}
    fresh = Links()
    assert introduce(a, fresh, reborn) == (Meeting.UP, Meeting.UP)
    # 1 + .25 + .125 - .5: its start, what it got, what was on its way to it, less what it gave.
    assert a.written_off == pytest.approx(0.25 + 0.125 - 0.5)
    assert a.in_flight_w() == 0.0
    a.push(B, share(3))
    assert fresh.place(A, 3) is Place.NEW


def test_a_restored_backup_learns_from_either_direction_that_it_is_one() -> None:
    a, b = paired()
    old_b = Links(out={}, into={}, entered=1.0)
    a.push(B, share(1))
    b.arrive(A, Arrival(header=share(1), body=None))
    b.collect()
    a.acknowledged(B, b.ack(A), INC[A])
    # B's disk is from before it met A: it knows nothing of the share that it acknowledged.
    verdict, _, _ = old_b.meet(A, INC[A], hello(a, B), INC[B])
    assert verdict is Meeting.I_ROLLED_BACK
    assert a.meet(B, INC[B], hello(old_b, A), INC[A])[0] is Meeting.THEY_ROLLED_BACK
    # A's disk is from before it sent the share that B absorbed.
    old_a = Links(entered=1.0)
    verdict, _, _ = old_a.meet(B, INC[B], hello(b, A), INC[A])
    assert verdict is Meeting.I_ROLLED_BACK


def test_a_backup_that_nobody_can_tell_from_the_original_goes_on() -> None:
    a, b = paired()
    a.push(B, share(1))
    # Restored to before the push, which never reached B: nothing was revealed, so nothing is wrong.
    before, _ = paired()
    assert introduce(before, b) == (Meeting.UP, Meeting.UP)


def test_a_retired_incarnation_must_begin_anew() -> None:
    a, b = paired()
    introduce(a, Links(), {**INC, B: 23})
    assert a.meet(B, INC[B], hello(b, A), INC[A])[0] is Meeting.RETIRED


def test_a_peer_reborn_while_connected_waits_for_the_hello_that_answers_its_own() -> None:
    _, b = paired()
    b.push(A, share(1, sender=B, recipient=A))
    reborn = {**INC, A: 12}
    fresh = Links()
    assert fresh.meet(B, INC[B], hello(b, A), reborn[A])[0] is Meeting.AGAIN
    assert b.meet(A, reborn[A], hello(fresh, B), INC[B])[0] is Meeting.UP
    assert b.in_flight_w() == 0.0
    assert fresh.meet(B, INC[B], hello(b, A), reborn[A])[0] is Meeting.UP
    assert fresh.place(B, 1) is Place.HAVE
    assert fresh.place(B, 2) is Place.NEW


def test_a_meeting_that_was_not_committed_can_happen_again() -> None:
    a, _ = paired()
    a.push(B, share(1))
    # B lost the meeting (it crashed before its first commit), not its incarnation.
    forgetful = Links(entered=1.0)
    verdict = forgetful.meet(A, INC[A], hello(a, B), INC[B])[0]
    assert verdict is Meeting.UP
    assert forgetful.place(A, 1) is Place.NEW
    assert a.meet(B, INC[B], hello(forgetful, A, their_incarnation=0), INC[A])[0] is Meeting.UP
    assert [entry.seq for _, entry in a.unresolved()] == [1]


def test_arrivals_of_a_broken_connection_are_forgotten_and_sent_again() -> None:
    a, b = paired()
    a.push(B, share(1))
    b.arrive(A, Arrival(header=share(1), body=None))
    b.discard(A)
    assert b.collect() == ([], [])
    introduce(a, b)
    assert [replace(entry.header) for _, entry in a.unresolved()] == [share(1)]
