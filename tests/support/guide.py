"""Runs the commands of a page of docs/: each site a home, each prompt `site$` a command typed there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PROGRAM", "Guide", "Step", "commands", "files"]

# The command as this environment has it.
PROGRAM = Path(sys.executable).parent / "p2pfl"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"^(?P<site>[a-z]+)\$ (?P<command>.+)$")
_PEER = re.compile(r"\b12D3KooW\w+")
_RECOVERY = re.compile(r"^recovery +(12D3KooW\w+)", re.MULTILINE)
_PID = re.compile(r"^process +(\d+)", re.MULTILINE)
# A command may start a process that imports libp2p and builds a learner, on a busy machine.
_COMMAND_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command, and at which site it is typed."""

    site: str
    command: str


def commands(page: str) -> list[Step]:
    """The commands of a page's console blocks, in order."""
    lines = [line for kind, text in _BLOCK.findall(page) if kind == "console" for line in text.splitlines()]
    return [
        Step(site=found["site"], command=found["command"]) for found in map(_PROMPT.match, lines) if found
    ]


def files(page: str) -> dict[str, str]:
    """The toml blocks whose first line names a file, `# PATH`, by path."""
    found = {}
    for kind, text in _BLOCK.findall(page):
        first, _, rest = text.partition("\n")
        if kind == "toml" and first.startswith("# ") and first.endswith(".toml"):
            found[first.removeprefix("# ")] = rest
    return found


@dataclass(slots=True, kw_only=True)
class Guide:
    """A page being carried out in `folder`; `replace` maps what a page says to what a test can do."""

    folder: Path
    replace: dict[str, str] = field(default_factory=dict)
    # Environment beside that of a site.
    extra: dict[str, str] = field(default_factory=dict)
    # Each site's PeerId, by its name in capitals.
    variables: dict[str, str] = field(default_factory=dict)
    # Each site's daemon.
    pids: dict[str, str] = field(default_factory=dict)

    def adapted(self, text: str) -> str:
        """`text` with addresses and paths that exist here."""
        for said, meant in self.replace.items():
            text = text.replace(said, meant)
        return text

    def home(self, site: str) -> Path:
        """Where the site's node lives."""
        return self.folder / "homes" / site

    def environment(self, site: str) -> dict[str, str]:
        """What a shell at `site` knows: its home, the ids that were told, its process."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("P2PFL_")},
            **self.variables,
            **self.extra,
            "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}",
            "P2PFL_HOME": str(self.home(site)),
            "PID": self.pids.get(site, ""),
            "NO_COLOR": "1",
        }

    def do(self, step: Step) -> subprocess.CompletedProcess[str]:
        """Carry out one command, and remember the PeerId and the process id that it prints."""
        done = subprocess.run(
            ["bash", "-c", self.adapted(step.command)],
            cwd=self.folder,
            env=self.environment(step.site),
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        if " node init " in step.command and (peer := _PEER.search(done.stdout)):
            # A site that puts its old key back keeps the id that the others were told.
            self.variables.setdefault(step.site.upper(), peer.group())
        if " --recovery " in step.command and " run join " in step.command:
            # The site's old key is no more.
            self.variables[step.site.upper()] = self._id_of(step.site)
        if " node init " in step.command and (spare := _RECOVERY.search(done.stdout)):
            self.variables.setdefault(f"{step.site.upper()}_RECOVERY", spare.group(1))
        if " node start " in step.command and (pid := _PID.search(done.stdout)):
            self.pids[step.site] = pid.group(1)
        return done

    def wait_for_a_round(self, site: str) -> None:
        """Return once the running node has committed one more round than it has now."""
        known = self.do(Step(site=site, command="p2pfl rounds --json")).stdout.splitlines()
        since = json.loads(known[-1])["round"] + 1 if known else 0
        done = self.do(Step(site=site, command=f"p2pfl rounds --follow --json --since {since} | head -n 1"))
        assert done.stdout, f"{site} has committed no round: {self._log(site)}"

    def wait_until_gone(self, site: str) -> None:
        """Return once the node has stopped: its log then ends."""
        done = self.do(Step(site=site, command="p2pfl log --follow > following.txt"))
        assert done.returncode in (0, 3), done.stderr

    def _id_of(self, site: str) -> str:
        asked = self.do(Step(site=site, command="p2pfl doctor --offline --json"))
        found = re.search(r'"check": ?"key".*?(12D3KooW\w+)', asked.stdout)
        assert found, asked.stdout
        return found.group(1)

    def stop(self) -> None:
        """End every daemon that was started here."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def _log(self, site: str) -> str:
        path = self.home(site) / "node.log"
        return path.read_text(encoding="utf-8")[-2000:] if path.exists() else "no log"
