"""What a store says of its audit log, as plain values: the same from a running node and from its disk."""

from __future__ import annotations

from typing import Any

import msgspec

from p2pfl import ledger as ledgers
from p2pfl.errors import ConfigError
from p2pfl.ids import RunId
from p2pfl.node.store import Store
from p2pfl.trust.decisions import Decision, Row

__all__ = ["PAGE", "answer", "row_from"]

# Rows of the log in one answer: some 400 kB.
PAGE = 1_000


def answer(store: Store, run: RunId, part: str, since: int = 0) -> dict[str, Any]:
    """`part` of what the store keeps for the audit of `run`; bytes are in hex.

    state: `run`, `rows` and `head` of the log, `statement`, the last one's content, and its `hash` in the
    chain, all as of one commit.   decisions: at most PAGE rows numbered above `since`.   witness: the last
    statement frame of each neighbour.   proofs: of equivocation.   outbound: what was sent, by peer and kind.
    privacy: what was released about each data set, in any run.
    Raises ConfigError on another part, StoreError.
    """
    match part:
        case "state":
            return {"run": run, **_state(_ledger(store, run))}
        case "decisions":
            return {"decisions": [_plain(row) for row in store.decisions(run, since, PAGE)]}
        case "witness":
            known = _ledger(store, run)
            frames = known.witnessed if known else {}
            return {"witness": [{"peer": peer, "frame": frames[peer].hex()} for peer in sorted(frames)]}
        case "proofs":
            return {"proofs": [row | {"evidence": row["evidence"].hex()} for row in store.proofs(run)]}
        case "outbound":
            return {"outbound": store.outbound(run)}
        case "privacy":
            return {"accounts": [msgspec.to_builtins(account) for account in store.accounts()]}
    raise ConfigError(
        f"the audit log has no part {part[:40]!r}; it has state, decisions, witness, proofs, outbound,"
        " privacy"
    )


def row_from(value: dict[str, Any]) -> Row:
    """The row of which `answer` gave `value`."""
    fields = {name: value[name] for name in Decision.__slots__}
    decision = Decision(**(fields | {"digest": bytes.fromhex(value["digest"])}))
    return Row(decision=decision, prev=bytes.fromhex(value["prev"]), hash=bytes.fromhex(value["h"]))


def _plain(row: Row) -> dict[str, Any]:
    made = {name: getattr(row.decision, name) for name in Decision.__slots__}
    return {**made, "digest": row.decision.digest.hex(), "prev": row.prev.hex(), "h": row.hash.hex()}


def _ledger(store: Store, run: RunId) -> ledgers.Ledger | None:
    data = store.ledger(run)
    return None if data is None else ledgers.decode(data)


def _state(known: ledgers.Ledger | None) -> dict[str, Any]:
    if known is None:
        return {"rows": 0, "head": "", "statement": "", "hash": ""}
    return {
        "rows": known.log.rows,
        "head": known.log.hash.hex(),
        "statement": known.statement.hex(),
        "hash": known.head.hash.hex() if known.head else "",
    }
