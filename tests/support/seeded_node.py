"""`p2pfl` with its first random bytes given: ENTROPY (hex), then the command's words.

A node's secret names its samples, and names order a hub's: with equal secrets two runs are equal in bits.
"""

from __future__ import annotations

import secrets
import sys

from p2pfl.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    given = bytes.fromhex(sys.argv.pop(1))
    secrets.token_bytes = lambda n=None: given[: n or 32]  # type: ignore[assignment]
    main()
