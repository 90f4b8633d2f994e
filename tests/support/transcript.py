"""A world's story as text that a reviewer can read: every event a peer hears, and what it asks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from p2pfl.events import (
    Ack,
    Commanded,
    Commit,
    Evaluate,
    Evaluated,
    Fetch,
    Finish,
    HangUp,
    Header,
    Hello,
    Kind,
    Message,
    Note,
    Notice,
    Offered,
    Penalise,
    Received,
    Refuse,
    Send,
    Started,
    Statement,
    Train,
    Trained,
)
from p2pfl.ledger import read
from p2pfl.simulations.world import World

__all__ = ["record"]


def record(world: World) -> list[str]:
    """Lines that grow as the world goes on.  Call it before anything has happened."""
    lines: list[str] = []
    names = {name: chr(ord("A") + i) for i, name in enumerate(world.names)}
    tell, do, crash = world._tell, world._do, world.crash

    def write(index: int, mark: str, text: str) -> None:
        lines.append(f"{world.now:7.2f}  {chr(ord('A') + index)} {mark} {text}")

    def telling(machine: Any, event: Any) -> None:
        write(machine.index, "<", _event(event, names))
        tell(machine, event)

    def doing(machine: Any, effect: Any) -> None:
        if text := _effect(effect, names):
            write(machine.index, "  >", text)
        do(machine, effect)

    def crashing(index: int) -> None:
        write(index, "!", "crashes")
        crash(index)

    world._tell, world._do, world.crash = telling, doing, crashing  # type: ignore[method-assign]
    return lines


def _header(header: Header) -> str:
    share = f" #{header.edge_seq} w={header.weights[0]:.4f}" if header.kind is Kind.SHARE else ""
    return f"{header.kind.name}{share} round {header.round}"


def _message(message: Message) -> str:
    match message.body:
        case Hello() as h:
            stand = f"absorbed {h.absorbed} sent {h.sent} acked {h.acked}"
            known = "knows you" if h.their_incarnation else "never met"
            return f"HELLO {h.phase}, {known}, {stand}"
        case Ack() as ack:
            refused = "".join(f", #{seq} refused: {why}" for seq, why in ack.refused.items())
            return f"ACK up to #{ack.absorbed}{refused}"
        case Statement():
            return f"STATEMENT round {message.header.round}, sent up to #{message.header.edge_seq}"
        case Notice() as notice:
            return f"NOTICE {notice.code}"
        case np.ndarray():
            return _header(message.header)
        case _:
            return message.header.kind.name


def _event(event: Any, names: dict[Any, str]) -> str:
    who = names.get(getattr(event, "peer", None), "")
    match event:
        case Started():
            return "starts on an empty disk" if event.snapshot is None else "starts from its disk"
        case Offered():
            return f"{who} offers {_header(event.header)}"
        case Received():
            return f"{who}: {_message(event.message)}"
        case Trained():
            return f"trained round {event.round}"
        case Evaluated():
            return f"evaluated round {event.round}"
        case Commanded():
            return f"people: {event.verb}"
        case _:
            return f"{who} {type(event).__name__.lower()}"


def _effect(effect: Any, names: dict[Any, str]) -> str:
    who = names.get(getattr(effect, "peer", None), "")
    match effect:
        case Commit():
            ledger = read(effect.snapshot)[0]
            outbox = sum(len(edge.entries) for edge in ledger.out.values())
            return f"commit: round {ledger.round}, w={ledger.w:.4f}, {outbox} in the outbox"
        case Send():
            return f"to {who}: {_message(effect.message)}"
        case Fetch():
            return f"fetch {_header(effect.header)} from {who}"
        case Refuse():
            return f"refuse {_header(effect.header)} from {who}: {effect.reason}"
        case Train():
            return f"train round {effect.round}"
        case Evaluate():
            return f"evaluate round {effect.round}"
        case HangUp():
            return f"hang up on {who}: {effect.reason}"
        case Penalise():
            return f"penalise {who}: {effect.fault}"
        case Finish():
            return f"finish: {effect.reason}"
        case Note():
            return ""
        case _:
            return type(effect).__name__
