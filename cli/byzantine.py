"""`python -m p2pfl.cli.byzantine ORDER`: the process of one attacker of `p2pfl demo --attack`.

A node as every other, but for what stands between its peer and the network (simulations/byzantine.py); it
forges from the models that others sent it.
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
    from p2pfl.simulations.attacks import AttackOptions

__all__ = ["attacker_program", "main"]


def attacker_program(
    attack: AttackOptions, attackers: Sequence[PeerId], home: Path, agreement: Path, *, victim: PeerId
) -> list[str]:
    """Arguments of Python that start the attacker who lives in `home`.

    attackers: all of them.   victim: whom an eclipse is for.
    """
    import msgspec

    order = {
        "attack": attack,
        "attackers": attackers,
        "home": str(home),
        "agreement": str(agreement),
        "victim": victim,
    }
    return ["-m", "p2pfl.cli.byzantine", msgspec.json.encode(order).decode()]


def main(order: str) -> int:
    """Take part, and lie, until the run ends or a signal comes; the exit code."""
    import msgspec

    from p2pfl import run as runs
    from p2pfl import settings
    from p2pfl.simulations.attacks import AttackOptions
    from p2pfl.simulations.byzantine import ByzantinePeer

    given = msgspec.json.decode(order)
    attackers = frozenset(given["attackers"])
    around = partial(
        ByzantinePeer,
        attack=msgspec.convert(given["attack"], AttackOptions),
        is_byzantine=lambda peer: peer in attackers,
        victim=given["victim"],
    )
    home = Path(given["home"])
    terminal = Terminal(home_flag=str(home), json=True)
    spec = runs.load(Path(given["agreement"]))
    return run_node(terminal, settings.load(home), spec, around=around)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
