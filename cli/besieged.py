"""`python -m p2pfl.cli.besieged ORDER`: the process of the victim of `p2pfl demo --attack eclipse:N`.

The node is as every other, and so is its peer; but its way out to the network is the attackers'
(simulations/gateway.py).  The demo plays their hand: a file in the victim's home says that they have shut it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .start import run_node
from .terminal import Terminal

if TYPE_CHECKING:
    from p2pfl.ids import PeerId
    from p2pfl.net.transport import TransportOf
    from p2pfl.simulations.attacks import AttackOptions

__all__ = ["VICTIM", "Siege", "main", "told_by", "victim_program"]

# The node that an eclipse is for: the first, as in the simulator.
VICTIM = 0

# More than a demo's node notes.
_EVENTS = 100_000
# The gateway is shut while this file is there.
_SHUT = "gateway.shut"


def victim_program(attackers: Sequence[PeerId], home: Path, agreement: Path) -> list[str]:
    """Arguments of Python that start the victim, who lives in `home`.   attackers: who own its gateway."""
    import msgspec

    order = {"attackers": attackers, "home": str(home), "agreement": str(agreement)}
    return ["-m", "p2pfl.cli.besieged", msgspec.json.encode(order).decode()]


class Siege:
    """The attackers' hand on a gateway: shut from round `starts_at` on, until they have trained all."""

    def __init__(self, home: Path, attack: AttackOptions, rounds: int) -> None:
        """home: the victim's.   rounds: that train."""
        self._file, self._starts_at, self._rounds = home / _SHUT, attack.starts_at, rounds
        self._done = 0
        # When the last of the others was done, if the victim is not; by the demo's clock.
        self.alone_since: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether the victim is cut off now."""
        return self._file.exists()

    def saw(self, number: int) -> str:
        """An attacker has committed training round `number`; what that changes for the victim, or nothing."""
        before, self._done = self._done, max(self._done, number + 1)
        if before < self._rounds <= self._done:
            return self.end()
        if before < self._starts_at <= self._done:
            self._file.touch()
            return "cut off from all but the attackers"
        return ""

    def end(self) -> str:
        """Open the gateway, if it is shut; what that changes, or nothing."""
        if not self.is_on:
            return ""
        self._file.unlink()
        return "can reach everybody again"


def told_by(home: Path, attack: AttackOptions) -> dict[str, int]:
    """What an eclipse did to its victim, as the node in `home` has noted it, for the verdict."""
    from p2pfl.node.store import Store

    with Store.open(home) as store:
        noted = [event["event"] for event in store.events(limit=_EVENTS)]
    return {
        "peer": VICTIM,
        "cut_off_after": attack.starts_at,
        "paused": noted.count("paused"),
        "resumed": noted.count("resumed"),
    }


def main(order: str) -> int:
    """Take part until the run ends or a signal comes; the exit code."""
    import msgspec

    from p2pfl import run as runs
    from p2pfl import settings
    from p2pfl.simulations.gateway import Gateway

    given = msgspec.json.decode(order)
    home = Path(given["home"])
    owners = frozenset(given["attackers"])

    def behind(own: TransportOf) -> TransportOf:
        return partial(Gateway, own, owners=owners, is_shut=(home / _SHUT).exists)

    terminal = Terminal(home_flag=str(home), json=True)
    spec = runs.load(Path(given["agreement"]))
    return run_node(terminal, settings.load(home), spec, behind=behind)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
