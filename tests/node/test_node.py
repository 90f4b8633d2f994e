from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from memory_nodes import WALL, Sites, agreement, keys

from p2pfl.errors import ConfigError, UnreachableError
from p2pfl.node.desk import Desk
from p2pfl.node.node import inline
from p2pfl.node.store import Store
from p2pfl.run import run_id
from p2pfl.trust import certificates, membership
from p2pfl.trust.identity import Identity
from p2pfl.trust.successions import Petition, decode_petition, encode_petition, issue_succession


async def run_all(sites: Sites, n: int) -> None:
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            for i in range(n):
                nursery.start_soon(sites.live, i)


def models(sites: Sites, n: int) -> list[np.ndarray]:
    return [sites.nodes[i].peer.model() for i in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize("averaging", ["push-sum", "push-pull", "d-psgd"])
async def test_four_nodes_end_with_one_model_and_all_of_the_mass(
    tmp_path: Path, autojump_clock: object, averaging: str
) -> None:
    spec = agreement(keys(4), gossip={"averaging": {"kind": averaging}})
    sites = Sites(tmp_path, spec, keys(4))
    await run_all(sites, 4)
    assert {sites.outcomes[i].reason for i in range(4)} == {"done"}
    assert [row["round"] for row in sites.rounds(2)] == list(range(7))
    first, *others = models(sites, 4)
    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-6)
    if averaging != "d-psgd":
        assert sites.mass().error < 1e-12
        assert sites.mass().expected == 4


@pytest.mark.slow
async def test_a_stopped_network_goes_on_at_the_same_round(tmp_path: Path, autojump_clock: object) -> None:
    spec = agreement(keys(3))
    whole = Sites(tmp_path / "whole", spec, keys(3))
    await run_all(whole, 3)

    sites = Sites(tmp_path / "parted", spec, keys(3))
    async with trio.open_nursery() as nursery:
        for i in range(3):
            await nursery.start(sites.live, i)
        await sites.until(lambda: all(len(sites.rounds(i)) == 3 for i in range(3)))
        for node in sites.nodes.values():
            node.stop(after_round=True)
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"stopped"}
    incarnations = [node.view.incarnation for node in sites.nodes.values()]
    assert sites.mass().error < 1e-12

    await run_all(sites, 3)
    for i in range(3):
        assert [row["round"] for row in sites.rounds(i)] == list(range(7))
        assert sites.nodes[i].view.incarnation == incarnations[i]
        assert not sites.said(i, "began anew")
    assert sites.mass().error < 1e-12
    assert sites.mass().expected == 3
    np.testing.assert_allclose(sites.nodes[0].peer.model(), whole.nodes[0].peer.model(), atol=1e-6)


async def test_a_node_stops_by_itself_after_the_round_it_was_told(
    tmp_path: Path, autojump_clock: object
) -> None:
    sites = Sites(tmp_path, agreement(keys(1)), keys(1))
    await sites.live(0, until_round=2)
    assert sites.outcomes[0].reason == "stopped"
    assert [row["round"] for row in sites.rounds(0)] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("kill_at_s", [1.3, 2.0, 2.5, 3.03])
async def test_a_killed_node_resumes_where_its_disk_says(
    tmp_path: Path, autojump_clock: object, kill_at_s: float
) -> None:
    sites = Sites(tmp_path, agreement(keys(4)), keys(4))
    async with trio.open_nursery() as nursery:
        for i in range(4):
            await nursery.start(sites.live, i)
        await trio.sleep(kill_at_s)
        committed = len(sites.rounds(1))
        incarnation = sites.nodes[1].view.incarnation
        sites.kill(1)
        await trio.sleep(0.5)
        await nursery.start(sites.live, 1)
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    assert len({row["round"] for row in sites.rounds(1)}) == len(sites.rounds(1)) >= committed
    assert sites.nodes[1].view.incarnation == incarnation
    assert sites.mass().error < 1e-12
    assert sites.mass().expected == 4
    for i in (0, 2, 3):
        assert max(row["seconds"] for row in sites.rounds(i)) <= 10.0
    for other in models(sites, 4):
        np.testing.assert_allclose(other, sites.nodes[0].peer.model(), atol=1e-4)


@pytest.mark.slow
async def test_a_node_that_lost_its_disk_begins_anew_and_its_mass_is_written_off(
    tmp_path: Path, autojump_clock: object
) -> None:
    sites = Sites(tmp_path, agreement(keys(4), run={"rounds": 8}), keys(4))
    async with trio.open_nursery() as nursery:
        for i in range(4):
            await nursery.start(sites.live, i)
        await trio.sleep(2.5)
        incarnation = sites.nodes[1].view.incarnation
        sites.kill(1)
        await trio.sleep(0.5)
        for path in sites.home(1).glob("store.db*"):
            path.unlink()
        await nursery.start(sites.live, 1)
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    assert sites.nodes[1].view.incarnation != incarnation
    audit = sites.mass()
    assert audit.error < 1e-12
    assert 2 < audit.expected < 4
    for other in models(sites, 4):
        np.testing.assert_allclose(other, sites.nodes[0].peer.model(), atol=1e-2)


@pytest.mark.slow
async def test_an_invited_node_that_knows_one_member_comes_to_know_all(
    tmp_path: Path, autojump_clock: object
) -> None:
    founders = keys(5)[:4]
    sites = Sites(tmp_path, agreement(founders, run={"rounds": 12}), keys(5))
    async with trio.open_nursery() as nursery:
        for i in range(4):
            await nursery.start(partial(sites.live, i, bootstrap=[j for j in range(4) if j != i]))
        await trio.sleep(3.5)
        ticket = invitation(sites, 4, signed_by=founders[:3])
        asked_at = trio.current_time()
        await nursery.start(partial(sites.live, 4, bootstrap=[2], ticket=ticket))
        await sites.until(lambda: sum(one["up"] for one in sites.nodes[4].view.neighbours.values()) == 4)
        assert trio.current_time() - asked_at < 1.0
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    assert all(len(node.view.members) == 5 for node in sites.nodes.values())
    assert sites.nodes[4].view.w > 0
    assert sites.mass().error < 1e-12
    assert sites.mass().expected == 4
    # Who showed its ticket, and who told it of the others, both know to whom they said how much.
    assert sent_in_the_lobby(sites, 4) == {("petition", sites.name(2))}
    assert sent_in_the_lobby(sites, 2) == {("answer", sites.name(4))}


def sent_in_the_lobby(sites: Sites, i: int) -> set[tuple[str, str]]:
    with Store.open(sites.home(i)) as store:
        rows = store.outbound(run_id(sites.spec))
    assert all(row["bytes"] > 100 for row in rows)
    return {(row["kind"], row["peer"]) for row in rows if row["kind"] in ("petition", "answer")}


async def test_a_ticket_without_a_quorum_opens_no_door(tmp_path: Path, autojump_clock: object) -> None:
    founders = keys(4)[:3]
    sites = Sites(tmp_path, agreement(founders), keys(4))
    ticket = invitation(sites, 3, signed_by=founders[:1])
    async with trio.open_nursery() as nursery:
        for i in range(3):
            nursery.start_soon(partial(sites.live, i, bootstrap=[j for j in range(3) if j != i]))
        await nursery.start(partial(sites.live, 3, bootstrap=[0], ticket=ticket))
        await sites.until(lambda: len(sites.outcomes) == 3)
        assert not sites.nodes[3].transport.peers()
        # What was presented is a vote all the same, and everybody has heard of it.
        held = [sites.nodes[i].peer.state.consortium.membership.pending for i in range(3)]
        assert [[len(one.signatures) for one in pending.values()] for pending in held] == [[1]] * 3
        assert "the 3 members" in sites.nodes[3].view.reason
        sites.nodes[3].stop()
    assert all(len(sites.nodes[i].view.members) == 3 for i in range(3))


def invitation(sites: Sites, i: int, signed_by: list[Identity]) -> bytes:
    certificate = certificates.issue_certificate(
        signed_by[0],
        run=run_id(sites.spec),
        subject=sites.name(i),
        name=f"site{i}",
        now=WALL,
        nonce=bytes(16),
    )
    for founder in signed_by[1:]:
        certificate = certificates.countersign(certificate, founder)
    return encode_petition(Petition(certificate=certificate))


def standing(sites: Sites, here: int, of: int) -> str:
    state = sites.nodes[here].peer.state
    return membership.standing(state.consortium.membership, sites.name(of), state.now)


@pytest.mark.slow
async def test_a_revoked_member_is_cut_everywhere_and_not_read_again(
    tmp_path: Path, autojump_clock: object
) -> None:
    sites = Sites(tmp_path, agreement(keys(4), run={"rounds": 8}), keys(4))
    others = (0, 1, 2)
    async with trio.open_nursery() as nursery:
        for i in range(4):
            await nursery.start(sites.live, i)
        await sites.until(lambda: len(sites.rounds(0)) == 3)
        for i in others:
            desk = Desk(sites.nodes[i], name=f"site{i}", run_sync=inline)
            await desk.command("ban", {"peer": sites.name(3), "reason": "it lies"})
        await sites.until(lambda: all(standing(sites, i, 3) == "revoked" for i in others))
        await sites.until(lambda: not any(sites.name(3) in sites.nodes[i].transport.peers() for i in others))
        read = [sites.fetched[i].count(sites.name(3)) for i in others]
        assert min(read) > 0
        await sites.until(lambda: len(sites.outcomes) >= 3)
        assert [sites.fetched[i].count(sites.name(3)) for i in others] == read
        if 3 not in sites.outcomes:
            sites.nodes[3].stop()
    assert {sites.outcomes[i].reason for i in others} == {"done"}
    assert all(sites.name(3) not in sites.nodes[i].view.members for i in others)
    held = sum(sites.nodes[i].view.w for i in others)
    expected = sum(sites.nodes[i].view.entered - sites.nodes[i].view.written_off for i in others)
    assert held == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
async def test_founders_amend_a_run_one_after_the_other_and_a_restart_keeps_the_terms(
    tmp_path: Path, autojump_clock: object
) -> None:
    sites = Sites(tmp_path, agreement(keys(3), run={"rounds": 40}), keys(3))
    changes = {"run.deadline_s": 12.0, "trust.max_norm": 1000.0}
    async with trio.open_nursery() as nursery:
        for i in range(3):
            await nursery.start(sites.live, i)
        await sites.until(lambda: len(sites.rounds(0)) == 3)
        first, second = (Desk(sites.nodes[i], name=f"site{i}", run_sync=inline) for i in (0, 1))
        plan = await first.command("amend", {"changes": changes})
        assert plan["changes"]["trust.max_norm"] == [None, 1000.0]
        assert not sites.nodes[0].peer.state.consortium.membership.amendments
        one = await first.command("amend", {"changes": changes, "sign": True})
        assert (one["epoch"], len(one["signed_by"]), one["quorum"]) == (1, 1, 2)
        await sites.until(lambda: bool(second.run()["amendments"]))
        # The second signs what the first began, with its fence.
        two = await second.command("amend", {"changes": changes, "at": 39, "sign": True})
        assert (two["at"], len(two["signed_by"])) == (one["at"], 2)
        with pytest.raises(ConfigError, match="cannot be amended"):
            await first.command("amend", {"changes": {"run.seed": 1}})
        with pytest.raises(ConfigError, match="not between now"):
            await first.command("amend", {"changes": {"run.quorum": 0.1}, "at": 40})
        await sites.until(lambda: len(sites.rounds(2)) == one["at"] + 3)
        sites.kill(2)
        await trio.sleep(0.5)
        await nursery.start(sites.live, 2)
        await sites.until(lambda: sites.nodes[2].peer.state.epoch == 1)
        assert sites.nodes[2].peer.state.spec.trust.max_norm == 1000.0
        assert second.status()["epoch"] == 1
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    began = [{fields["round"] for fields in sites.said(i, "epoch began")} for i in range(3)]
    assert all(one["at"] in rounds for rounds in began)
    assert sites.mass().error < 1e-12


async def test_a_node_that_leaves_hands_its_mass_over(tmp_path: Path, autojump_clock: object) -> None:
    sites = Sites(tmp_path, agreement(keys(4), run={"rounds": 8}), keys(4))
    async with trio.open_nursery() as nursery:
        for i in range(4):
            await nursery.start(sites.live, i)
        await sites.until(lambda: len(sites.rounds(2)) == 3)
        await Desk(sites.nodes[2], name="site2", run_sync=inline).command("leave", {})
    assert sites.outcomes[2].reason == "left"
    assert {sites.outcomes[i].reason for i in (0, 1, 3)} == {"done"}
    assert sum(sites.nodes[i].view.w for i in (0, 1, 3)) == pytest.approx(4, rel=1e-12)
    with Store.open(sites.home(2)) as store:
        assert store.runs()[0]["state"] == "left"


async def test_the_disk_of_a_stopped_node_holds_its_neighbours_as_they_stood(
    tmp_path: Path, autojump_clock: object
) -> None:
    sites = Sites(tmp_path, agreement(keys(3)), keys(3))
    await run_all(sites, 3)
    shown = {row["peer_id"]: row for row in Desk(sites.nodes[0], name="site0", run_sync=inline).peers()}
    with Store.open(sites.home(0)) as store:
        rows = {row["peer"]: row for row in store.peers(run_id(sites.spec))}
    assert rows.keys() == shown.keys() == {sites.name(1), sites.name(2)}
    for peer, row in rows.items():
        assert row["state"] == "connected"
        assert row["seen_at"] > WALL
        assert row["sent_w"] > 0
        # Acknowledgements may come after the last commit; what was sent and absorbed no longer changes then.
        assert {key: row[key] for key in ("sent_w", "absorbed_w")} == {
            key: shown[peer][key] for key in ("sent_w", "absorbed_w")
        }


async def test_sites_with_different_agreements_say_where_they_differ(
    tmp_path: Path, autojump_clock: object
) -> None:
    sites = Sites(tmp_path, agreement(keys(2)), keys(2))
    async with trio.open_nursery() as nursery:
        await nursery.start(sites.live, 0)
        await nursery.start(partial(sites.live, 1, spec=agreement(keys(2), run={"rounds": 6})))
        await sites.until(lambda: bool(sites.said(0, "run mismatch") and sites.said(1, "run mismatch")))
        for node in sites.nodes.values():
            assert node.view.phase == "waiting"
            node.stop()
    assert all("run.rounds" in sites.said(i, "run mismatch")[0]["text"] for i in (0, 1))


async def test_a_ping_takes_the_way_there_and_back(tmp_path: Path, autojump_clock: object) -> None:
    sites = Sites(tmp_path, agreement(keys(2)), keys(2))
    async with trio.open_nursery() as nursery:
        for i in range(2):
            await nursery.start(sites.live, i)
        await sites.until(lambda: len(sites.nodes[0].transport.peers()) == 1)
        await trio.sleep(0.2)
        desk = Desk(sites.nodes[0], name="site0", run_sync=inline)
        answer = await desk.command("ping", {"peer": sites.name(1)})
        assert answer["rtt_ms"] == pytest.approx(20, abs=0.01)
        sites.network.partition(sites.name(0), sites.name(1))
        with pytest.raises(UnreachableError, match="did not answer"):
            await sites.nodes[0].wires.ping(sites.name(1))
        sites.network.heal(sites.name(0), sites.name(1))
        with pytest.raises(UnreachableError, match="is not connected"):
            await sites.nodes[0].wires.ping(keys(3)[2].peer_id)
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}


@pytest.mark.slow
async def test_a_learner_that_hangs_pauses_its_node_and_delays_the_others_by_no_more_than_the_deadline(
    tmp_path: Path, autojump_clock: object
) -> None:
    # More rounds than any queue between the node and its learner could hold.
    spec = agreement(keys(3), run={"rounds": 60, "deadline_s": 3.0})
    sites = Sites(tmp_path, spec, keys(3), fit_s=lambda i: 400.0 if i == 0 else 0.5)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            for i in range(3):
                await nursery.start(sites.live, i)
            await sites.until(lambda: {1, 2} <= sites.outcomes.keys())
            assert sites.nodes[0].view.phase == "paused"
            assert "the learner failed 3 times in a row" in sites.nodes[0].view.reason
            assert [fact["fault"] for fact in sites.said(0, "learner failed")] == ["no answer in time"] * 3
            sites.nodes[0].stop()
    assert [sites.outcomes[i].reason for i in range(3)] == ["stopped", "done", "done"]
    for i in (1, 2):
        assert max(row["seconds"] for row in sites.rounds(i)) <= spec.run.deadline_s
    assert sites.mass().error < 1e-12


@pytest.mark.slow
async def test_a_member_under_a_new_key_shows_both_in_a_lobby_and_goes_on_with_its_site_s_memory(
    tmp_path: Path, autojump_clock: object
) -> None:
    founders = keys(5)[:3]
    sites = Sites(tmp_path, agreement(founders, run={"rounds": 30, "members_at_start": 4}), keys(5))
    ticket = decode_petition(invitation(sites, 3, signed_by=founders[:2]))
    async with trio.open_nursery() as nursery:
        for i in range(3):
            await nursery.start(partial(sites.live, i, bootstrap=[j for j in range(3) if j != i]))
        await nursery.start(partial(sites.live, 3, bootstrap=[0], ticket=encode_petition(ticket)))
        await sites.until(lambda: len(sites.rounds(3)) == 4)
        await Desk(sites.nodes[3], name="site3", run_sync=inline).command("leave", {})
        await sites.until(lambda: 3 in sites.outcomes)
        await trio.sleep(0.5)
        shutil.copytree(sites.home(3), sites.home(4))
        made = issue_succession(
            sites.identities[3], sites.identities[4], run=run_id(sites.spec), old=sites.name(3), now=WALL
        )
        renamed = encode_petition(replace(ticket, successions=(made,)))
        await nursery.start(partial(sites.live, 4, bootstrap=[2], ticket=renamed))
        await sites.until(lambda: len(sites.rounds(4)) > 2)
        assert [standing(sites, i, 3) for i in (0, 1, 2)] == ["revoked"] * 3
        assert [standing(sites, i, 4) for i in (0, 1, 2)] == ["member"] * 3
        # Whoever still has the old key gets as far as the lobby, and is told.
        shutil.rmtree(sites.home(3))
        await nursery.start(partial(sites.live, 3, bootstrap=[1], ticket=encode_petition(ticket)))
        await sites.until(lambda: sites.outcomes.get(3) is not None and sites.outcomes[3].reason == "revoked")
    assert {sites.outcomes[i].reason for i in (0, 1, 2, 4)} == {"done"}
    assert sites.nodes[4].view.w > 0
    held = sum(sites.nodes[i].view.w for i in (0, 1, 2, 4))
    assert held == pytest.approx(4, rel=1e-12)
    with Store.open(sites.home(4)) as store:
        assert store.runs()[0]["state"] == "done"
