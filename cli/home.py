"""What a node's home folder holds, and how a command reads and writes it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from p2pfl.errors import ConfigError, RefusedError, StoreError

if TYPE_CHECKING:
    from p2pfl.run import RunSpec
    from p2pfl.trust.identity import Identity
    from p2pfl.trust.tickets import Ticket

__all__ = [
    "KEY",
    "LOG",
    "RUN",
    "SETTINGS",
    "STORE",
    "TICKET",
    "add_bootstrap",
    "admitted_by",
    "code_folder",
    "identity_of",
    "joined_run",
    "joined_ticket",
    "make_home",
    "remember_run",
    "write_private",
]

SETTINGS = "node.toml"
KEY = "identity.key"
RUN = "run.toml"
TICKET = "ticket"
LOG = "node.log"
STORE = "store.db"
# The folder that run.toml came from: learner.py usually lies beside it.
_ORIGIN = "run.origin"


def make_home(home: Path) -> None:
    """Make the folder, for its owner only.  Raises StoreError."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{home} cannot be made: {error.strerror}; choose another --home") from error


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all, for its owner only.  Raises StoreError."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}; is there room, and is it yours?"
        ) from error


def identity_of(home: Path) -> Identity:
    """The key of the node in `home`.  Raises ConfigError when there is none, or others may read it."""
    from p2pfl.trust import identity

    if not (home / KEY).exists():
        raise ConfigError(f"no node lives in {home}; `p2pfl --home {home} node init` makes one")
    return identity.load(home / KEY)


def joined_run(home: Path) -> RunSpec | None:
    """The agreement this node has joined, None before that.  Raises ConfigError when the file is wrong."""
    from p2pfl.run import load

    return load(home / RUN) if (home / RUN).exists() else None


def joined_ticket(home: Path) -> Ticket | None:
    """The ticket this node holds, None for a founder and before it joined.  Raises ConfigError."""
    from p2pfl.trust.tickets import parse_ticket

    path = home / TICKET
    return parse_ticket(path.read_text(encoding="utf-8")) if path.exists() else None


def code_folder(home: Path) -> Path | None:
    """The folder whose learner this node runs: where run.toml was when it was joined."""
    path = home / _ORIGIN
    return Path(path.read_text(encoding="utf-8").strip()) if path.exists() else None


def admitted_by(spec: RunSpec, identity: Identity, ticket: Ticket | None) -> str:
    """In what capacity this key is a member of `spec`: "founder" or "ticket".

    Raises RefusedError when the ticket is for another key or run, lacks signatures, or there is none.
    """
    from p2pfl.ids import parse_peer_id, short
    from p2pfl.run import run_id
    from p2pfl.trust.membership import genesis, signatures_missing

    if identity.peer_id in spec.trust.founders:
        return "founder"
    if ticket is None:
        raise RefusedError(
            f"{identity.peer_id} is not a founder of {spec.run.name!r} and has no ticket; "
            f"ask a founder for one: `p2pfl trust invite {identity.peer_id}`"
        )
    if ticket.subject != identity.peer_id:
        raise RefusedError(
            f"the ticket is for {ticket.subject}, this node is {identity.peer_id}; "
            "ask for a ticket of your own"
        )
    if ticket.run != run_id(spec):
        raise RefusedError(
            f"the ticket is for run {short(ticket.run)}, this agreement is run {short(run_id(spec))}; "
            "ask the founders for their run.toml, word for word"
        )
    founders = tuple(parse_peer_id(founder) for founder in spec.trust.founders)
    missing = signatures_missing(genesis(run_id(spec), founders, spec.trust.quorum), ticket.certificate)
    if missing:
        raise RefusedError(
            f"{missing} more founders must countersign this ticket; each runs `p2pfl trust admit TICKET`"
        )
    return "ticket"


def remember_run(home: Path, text: str, origin: Path, ticket: str | None) -> None:
    """Keep the agreement (as written), where it came from, and the ticket; forget an older one's.

    Raises StoreError.
    """
    write_private(home / _ORIGIN, f"{origin.absolute()}\n")
    if ticket is None:
        (home / TICKET).unlink(missing_ok=True)
    else:
        write_private(home / TICKET, ticket.strip() + "\n")
    write_private(home / RUN, text)


_BOOTSTRAP = re.compile(r"^(?P<key>[ \t]*bootstrap[ \t]*=[ \t]*)\[[^\]]*\]", re.MULTILINE)


def add_bootstrap(home: Path, addresses: Iterable[str]) -> None:
    """Add `addresses` to `bootstrap` in node.toml; its comments stay.

    Raises ConfigError when the file is not TOML, or has the key in a form that only a person can edit.
    """
    path = home / SETTINGS
    try:
        text = path.read_text(encoding="utf-8")
        present = tomllib.loads(text).get("node", {}).get("bootstrap", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise ConfigError(f"{path}: {error}; `p2pfl node init` writes a new one") from error
    wanted = list(dict.fromkeys([*present, *addresses]))
    if wanted == present:
        return
    value = "[" + ", ".join(f'"{address}"' for address in wanted) + "]"
    if _BOOTSTRAP.search(text):
        edited = _BOOTSTRAP.sub(lambda found: found["key"] + value, text, count=1)
    else:
        edited = text.replace("[node]", f"[node]\nbootstrap = {value}", 1)
    try:
        understood = tomllib.loads(edited).get("node", {}).get("bootstrap", []) == wanted
    except tomllib.TOMLDecodeError:
        understood = False
    if not understood:
        raise ConfigError(f"{path}: bootstrap cannot be edited here; set it to {value} by hand")
    write_private(path, edited)
