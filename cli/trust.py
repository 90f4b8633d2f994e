"""`p2pfl trust`: who is believed, who is told, and who may come in."""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pfl.errors import ConfigError, NotRunningError, RefusedError
from p2pfl.ids import PeerId, short

from . import home as homes
from .audit import audit
from .terminal import Terminal, columns, pass_terminal

if TYPE_CHECKING:
    from p2pfl.run import RunSpec
    from p2pfl.trust.certificates import Certificate
    from p2pfl.trust.identity import Identity

__all__ = ["trust"]

# Levels and kinds by the words of trust/relations.py, which --help does not load; a test holds them equal.
_LEVELS = ("deny", "quarantine", "limited", "normal", "pinned")
_TASKS = ("weights", "features", "labels")
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(epilog="Example: p2pfl trust invite 12D3KooW... --for 7d --name st-marys")
def trust() -> None:
    """Who is believed and who is told: list, invite, admit, renew, set, ban, forget, audit."""


trust.add_command(audit)


def _seconds(text: str) -> float:
    """`7d`, `12h`, `30m`, `2w` in seconds.  Raises ConfigError."""
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if found is None or int(found[1]) == 0:
        raise ConfigError(f"{text!r} is no duration; write it like 30m, 12h, 7d or 2w")
    return int(found[1]) * _UNITS_S[found[2]]


def _day(at: Any) -> str | None:
    return None if at is None else datetime.fromtimestamp(float(at), UTC).strftime("%Y-%m-%d")


@trust.command("list", epilog="Example: p2pfl trust list --why st-marys")
@click.option("--why", metavar="PEER", help="One peer alone, and every number behind its level.")
@pass_terminal
def list_(terminal: Terminal, why: str | None) -> None:
    """Every peer that is or was a member, or has levels of its own.

    PEER is an id, a name, or the beginning or end of an id.
    """
    from .client import ControlClient, one_peer

    with ControlClient(terminal.home) as node:
        found = node.get("/v1/trust")["trust"]
    if why is not None:
        wanted = one_peer(why, found)
        (peer,) = [peer for peer in found if peer["peer_id"] == wanted] or [{"peer_id": wanted}]
        terminal.result(peer, "\n".join(_reasons(peer)))
        return
    rows = []
    for peer in found:
        marks = [word for word, key in (("this node", "self"), ("founder", "founder")) if peer.get(key)]
        if peer.get("signatures"):
            marks.append(f"{peer['signatures']} of {peer['quorum']} founders have signed")
        if peer.get("level", peer.get("accept")) != peer.get("accept"):
            marks.append(f"{peer['level']} by reputation")
        cells = [peer.get(key) for key in ("standing", "share", "accept")]
        expires = _day(peer.get("expires_at"))
        rows.append(
            [short(PeerId(peer["peer_id"])), peer.get("name") or None, *cells, expires, ", ".join(marks)]
        )
    header = ("peer", "name", "standing", "share", "accept", "expires", "")
    terminal.result({"trust": found}, columns(rows, header))


def _reasons(peer: dict[str, Any]) -> list[str]:
    """What `trust list --why` says of one row of the node's."""
    record = peer.get("reputation")
    lines = [peer["peer_id"], f"accepted as {peer.get('level')}; this site's own level: {peer.get('accept')}"]
    lines += [f"{what} {level}" for what, level in (peer.get("only") or {}).items()]
    if record is None:
        return [*lines, "no reputation: nothing of it was scored"]
    a, b, faults = record["a"], record["b"], record["faults"]
    lines += [
        f"its reputation allows {record['level']}: {record['rule']}",
        f"score {record['score']:.3f}, the lower 10% of Beta({a:.2f}, {b:.2f})",
        f"{record['rounds']} rounds scored",
        "doubted by angle {by_angle}, by distance {by_distance}, by loss {by_loss}".format_map(record),
        "faults: " + (", ".join(f"{kind} {n}" for kind, n in sorted(faults.items())) or "none"),
        f"cautions of others that count: {len(record['reports'])}",
    ]
    if last := record["last"]:
        doubt = f"doubted by {last['doubt']}" if last["doubt"] else "approved"
        lines.append(f"round {last['round']}, {doubt}:")
        for name, bound, word in (
            ("loss", "most_loss", "at most"),
            ("distance", "most_distance", "at most"),
            ("cosine", "least_cosine", "at least"),
        ):
            if last[name] is not None:
                limit = "nothing to compare" if last[bound] is None else f"{word} {last[bound]:.4g}"
                lines.append(f"  {name} {last[name]:.4g} ({limit})")
        if last["own_loss"] is not None:
            lines.append(f"  loss of the own model on the same rows {last['own_loss']:.4g}")
    return lines


def _founder_of(terminal: Terminal, file: Path | None) -> tuple[Identity, RunSpec]:
    """The node's key and the agreement it is a founder of.  Raises RefusedError when it is none."""
    from p2pfl.run import load

    identity = homes.identity_of(terminal.home)
    spec = load(file) if file is not None else homes.joined_run(terminal.home)
    if spec is None:
        raise ConfigError(f"the node in {terminal.home} has joined no run; name the agreement with --run")
    if identity.peer_id not in spec.trust.founders:
        raise RefusedError(
            f"{identity.peer_id} is no founder of {spec.run.name!r}, and only founders admit; ask one of them"
        )
    return identity, spec


def _missing(spec: RunSpec, certificate: Certificate) -> int:
    from p2pfl.ids import parse_peer_id
    from p2pfl.run import run_id
    from p2pfl.trust.membership import genesis, signatures_missing

    founders = tuple(parse_peer_id(founder) for founder in spec.trust.founders)
    return signatures_missing(genesis(run_id(spec), founders, spec.trust.quorum), certificate)


def _own_addresses(terminal: Terminal, identity: Identity) -> list[str]:
    """Where the invited peer finds this founder: the running node's addresses, else those in node.toml."""
    from p2pfl.settings import load

    from .client import ControlClient

    with ControlClient(terminal.home) as node:
        try:
            return list(node.get("/v1/status").get("addresses") or ())
        except NotRunningError:
            settings = load(terminal.home).node
    tail = f"/p2p/{identity.peer_id}"
    # A wildcard is no address that others could dial.
    listen = [
        a for a in settings.listen if not a.startswith(("/ip4/0.0.0.0/", "/ip6/::/")) and "/tcp/0" not in a
    ]
    own = [address if "/p2p/" in address else address + tail for address in (*settings.announce, *listen)]
    return [*own, *settings.bootstrap]


def _reachable(addresses: list[str]) -> list[str]:
    """The addresses that fit a ticket, those that other machines can dial first."""
    from p2pfl.trust.tickets import MAX_ADDRESS_BYTES, MAX_ADDRESSES

    known = [a for a in dict.fromkeys(addresses) if len(a.encode()) <= MAX_ADDRESS_BYTES]
    known.sort(key=lambda address: address.startswith(("/ip4/127.", "/ip6/::1/")))
    return known[:MAX_ADDRESSES]


@trust.command(epilog="Example: p2pfl trust invite 12D3KooW... --for 7d --name st-marys")
@click.argument("peer", metavar="PEERID")
@click.option(
    "--for", "duration", default="7d", show_default=True, help="Until when the ticket must be used."
)
@click.option("--run", "file", type=_FILE, help="The agreement, instead of the joined one.")
@click.option("--lasts", default="90d", show_default=True, help="How long it is a member, until renewed.")
@click.option("--name", default="", help="What the invited peer is called.")
@click.option("--recovery", metavar="PEERID", help="The recovery key that its `node init` printed.")
@click.option("--address", "addresses", multiple=True, metavar="MULTIADDR", help="Where members are reached.")
@pass_terminal
def invite(
    terminal: Terminal,
    peer: str,
    duration: str,
    file: Path | None,
    lasts: str,
    name: str,
    recovery: str | None,
    addresses: tuple[str, ...],
) -> None:
    """Make a ticket that admits PEERID, the id that its `node init` printed.

    The ticket is a certificate for that key alone, so it may travel by mail; who steals it cannot use it.
    A running node keeps this founder's signature and passes it on, until enough founders have signed.
    """
    from p2pfl.ids import parse_peer_id
    from p2pfl.run import run_id
    from p2pfl.trust.certificates import issue_certificate
    from p2pfl.trust.tickets import write_ticket

    identity, spec = _founder_of(terminal, file)
    subject = parse_peer_id(peer)
    if subject in spec.trust.founders:
        raise ConfigError(f"{subject} is a founder and needs no ticket; it runs `p2pfl run join run.toml`")
    certificate = issue_certificate(
        identity,
        run=run_id(spec),
        subject=subject,
        name=name,
        now=time.time(),
        nonce=secrets.token_bytes(16),
        recovery=parse_peer_id(recovery) if recovery else None,
        use_within_s=min(_seconds(duration), _seconds(lasts)),
        lasts_s=_seconds(lasts),
    )
    where = _reachable(list(addresses) or _own_addresses(terminal, identity))
    if not where:
        terminal.warn("the ticket holds no address: start this node first, set `announce`, or give --address")
    ticket = write_ticket(certificate, where)
    missing = _missing(spec, certificate)
    if missing:
        if file is None:
            _hand_over(terminal, ticket)
        terminal.note(
            f"{missing} more founders must countersign it: `p2pfl trust admit TICKET` on their nodes"
        )
    else:
        terminal.note(f"{subject} joins by: p2pfl run join run.toml --ticket TICKET")
    terminal.result(
        {
            "ticket": ticket,
            "peer_id": subject,
            "run_id": run_id(spec),
            "use_by": certificate.use_by,
            "expires_at": certificate.expires_at,
            "signatures_missing": missing,
            "addresses": where,
        },
        ticket,
    )


def _hand_over(terminal: Terminal, ticket: str) -> dict[str, Any]:
    """Give the running node a ticket, to keep and pass on its signatures; empty when it does not run."""
    from .client import ControlClient

    with ControlClient(terminal.home) as node:
        try:
            return dict(node.post("/v1/trust/admit", {"ticket": ticket}))
        except NotRunningError:
            return {}


@trust.command(epilog="Example: p2pfl trust admit p2pfl1...")
@click.argument("ticket")
@click.option("--run", "file", type=_FILE, help="The agreement, instead of the joined one.")
@pass_terminal
def admit(terminal: Terminal, ticket: str, file: Path | None) -> None:
    """Countersign a ticket that another founder made, and admit its peer once enough have signed.

    Prints the ticket with this founder's signature, for the next founder or for the invited peer.  A running
    node keeps the signature and passes it on: those of several founders add up, wherever they were given.
    """
    from p2pfl.run import run_id
    from p2pfl.trust.certificates import countersign
    from p2pfl.trust.tickets import parse_ticket, write_ticket

    identity, spec = _founder_of(terminal, file)
    parsed = parse_ticket(ticket)
    if parsed.run != run_id(spec):
        raise RefusedError(
            f"the ticket is for run {short(parsed.run)}, this node's is {short(run_id(spec))}; "
            "compare the agreements with `p2pfl run hash`"
        )
    certificate = countersign(parsed.certificate, identity)
    addresses = _reachable([*parsed.addresses, *_own_addresses(terminal, identity)])
    signed = write_ticket(certificate, addresses)
    missing = _missing(spec, certificate)
    answer = _hand_over(terminal, signed) if file is None else {}
    admitted = answer.get("standing") == "member"
    if missing and not admitted:
        terminal.note(f"{missing} more founders must countersign it")
    elif not answer:
        terminal.note("this node is not running; the peer is admitted when it shows the ticket to a member")
    terminal.result(
        {
            "ticket": signed,
            "peer_id": certificate.subject,
            "signatures_missing": missing,
            "admitted": admitted,
        },
        signed,
    )


@trust.command(epilog="Example: p2pfl trust renew --all")
@click.argument("peer", required=False)
@click.option("--all", "everyone", is_flag=True, help="Everybody who has a certificate.")
@click.option("--lasts", default="90d", show_default=True, help="From now.")
@pass_terminal
def renew(terminal: Terminal, peer: str | None, everyone: bool, lasts: str) -> None:
    """As a founder sign a later certificate of PEER, which goes on taking part meanwhile.

    With a quorum of founders it counts everywhere.  PEER is an id, a name, or the beginning or end of an id.
    """
    from .client import ControlClient, one_peer

    if (peer is None) != everyone:
        raise ConfigError("whose certificate? name one PEER, or give --all")
    arguments: dict[str, Any] = {"lasts_s": float(_seconds(lasts))}
    with ControlClient(terminal.home) as node:
        if peer is not None:
            arguments["peer"] = one_peer(peer, node.get("/v1/trust")["trust"])
        renewed = node.post("/v1/trust/renew", arguments)["renewed"]
    lines = [
        f"{one['peer_id']}: until {_day(one['expires_at'])}, signed by {one['signatures']} of {one['quorum']}"
        + ("" if one["signatures"] >= one["quorum"] else "; other founders run `p2pfl trust renew`, too")
        for one in renewed
    ]
    terminal.result({"renewed": renewed}, "\n".join(lines) or "nobody has a certificate here")


@trust.command(epilog="Example: p2pfl trust ban st-marys --reason 'sends poison'")
@click.argument("peer")
@click.option("--reason", default="", help="In 64 bytes at most; every member sees it.")
@pass_terminal
def ban(terminal: Terminal, peer: str, reason: str) -> None:
    """Deny PEER in both directions here, and as a founder vote to revoke it everywhere.

    PEER is an id, a name, or the beginning or end of an id.
    """
    from .client import ControlClient, one_peer

    with ControlClient(terminal.home) as node:
        wanted = one_peer(peer, node.get("/v1/trust")["trust"])
        answer = node.post("/v1/trust/ban", {"peer": wanted, "reason": reason})
    text = f"{wanted} is banned here"
    if answer.get("revoked"):
        text = f"{wanted} is revoked: no member accepts it any more"
    elif answer.get("votes"):
        text += f"; {answer['votes']} of {answer['quorum']} founders have voted to revoke it"
    terminal.result({"peer_id": wanted, **answer}, text)


@trust.command("set", epilog="Example: p2pfl trust set st-marys --share deny --accept limited")
@click.argument("peer")
@click.option("--share", type=click.Choice(_LEVELS), help="How far PEER is told.")
@click.option("--accept", type=click.Choice(_LEVELS), help="How far PEER is believed.")
@click.option("--for", "task", type=click.Choice(_TASKS), default="weights", show_default=True)
@pass_terminal
def set_(terminal: Terminal, peer: str, share: str | None, accept: str | None, task: str) -> None:
    """Decide whom this site tells and whom it believes; neither asks for the other.

    Levels for weights hold for soft labels, too, until these have their own.  Features, which show single
    rows, are told to nobody without a level of their own.

    PEER is an id, a name, or the beginning or end of an id.
    """
    from .client import ControlClient, one_peer

    levels = {key: value for key, value in (("share", share), ("accept", accept)) if value is not None}
    if not levels:
        raise ConfigError("nothing to set; give --share, --accept or both")
    with ControlClient(terminal.home) as node:
        wanted = one_peer(peer, node.get("/v1/trust")["trust"])
        answer = node.post("/v1/trust/set", {"peer": wanted, "for": task, **levels})
    said = ", ".join(f"{key} {task} {value}" for key, value in levels.items())
    terminal.result({"peer_id": wanted, **answer}, f"{wanted}: {said}")


@trust.command(epilog="Example: p2pfl trust forget st-marys")
@click.argument("peer")
@pass_terminal
def forget(terminal: Terminal, peer: str) -> None:
    """Undo what this site decided and learned of PEER: its levels, its ban here, its reputation.

    A revocation is the founders' and stays.  PEER is an id, a name, or the beginning or end of an id.
    """
    from .client import ControlClient, one_peer

    with ControlClient(terminal.home) as node:
        wanted = one_peer(peer, node.get("/v1/trust")["trust"])
        answer = node.post("/v1/trust/forget", {"peer": wanted})
    terminal.result({"peer_id": wanted, **answer}, f"{wanted}: forgotten; it is a newcomer here")
