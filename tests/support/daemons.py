"""Real nodes: `p2pfl node start` in processes of their own, libp2p on loopback, ports that were free."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from memory_nodes import mass_on_disk

from p2pfl.cli.client import ControlClient
from p2pfl.errors import P2PFLError
from p2pfl.ids import PeerId
from p2pfl.node.store import Store
from p2pfl.run import RunSpec, parse, run_id, write_toml
from p2pfl.simulations.mass_audit import MassAudit
from p2pfl.trust import certificates, identity
from p2pfl.trust.tickets import write_ticket

__all__ = ["Daemons", "free_ports"]

# Between two looks at something that takes its time.
_LOOK_S = 0.02


def free_ports(n: int) -> list[int]:
    """n ports on loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def write_key(own: identity.Identity, path: Path) -> None:
    """`own` as the key file of a node."""
    # PKCS #8 of an Ed25519 key: RFC 8410, section 7.
    body = base64.b64encode(bytes.fromhex("302e020100300506032b657004220420") + own.seed).decode()
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)


class Daemons:
    """Nodes in `folder`, all founders of one run, and their processes.  A context manager that kills them."""

    def __init__(
        self,
        folder: Path,
        n: int,
        learner: str,
        /,
        *,
        invited: int = 0,
        data: Sequence[str] = (),
        roles: Any = (),
        keys: Any = (),
        **tables: Mapping[str, Any],
    ) -> None:
        """learner: the text of learner.py, with a `learner(site)`.   invited: how many of the n do not found.

        data: each node's, its number when not given.   roles, keys: likewise, no roles and new keys when not
        given.   tables: keys of run.toml above the defaults used here.
        """
        self.folder = folder
        self.homes = [folder / f"home{i}" for i in range(n)]
        ports = free_ports(2 * n)
        self.names: list[PeerId] = []
        for i, home in enumerate(self.homes):
            home.mkdir(mode=0o700)
            if keys:
                write_key(keys[i], home / "identity.key")
            own = identity.load(home / "identity.key") if keys else identity.create(home / "identity.key")
            self.names.append(own.peer_id)
        self.addresses = [
            f"/ip4/127.0.0.1/tcp/{port}/p2p/{name}" for port, name in zip(ports[:n], self.names, strict=True)
        ]
        for i, home in enumerate(self.homes):
            node = {
                "name": f"node{i}",
                "listen": [self.addresses[i].partition("/p2p/")[0]],
                "bulk_listen": f"127.0.0.1:{ports[n + i]}",
                "bootstrap": [self.addresses[0]] if 0 < i < n - invited else [],
                "data": data[i] if data else str(i),
                "role": roles[i] if roles else "",
            }
            table: dict[str, Any] = {"node": node}
            if "knowledge" in tables:
                # Every site names every other as one that may have its features; only hubs are told them.
                table["trust"] = {"share_features": [name for name in self.names if name != self.names[i]]}
            (home / "node.toml").write_text(write_toml(table))
        founders = self.names[: n - invited]
        agreement: dict[str, dict[str, Any]] = {
            "run": {"rounds": 20, "members_at_start": len(founders), "closing_rounds": 2, "deadline_s": 5.0},
            "learner": {"module": "learner:learner"},
            "trust": {"founders": list(founders), "quorum": len(founders) // 2 + 1},
        }
        for name, changes in tables.items():
            agreement[name] = {**agreement.get(name, {}), **changes}
        (folder / "learner.py").write_text(learner)
        self.run_file = folder / "run.toml"
        self.run_file.write_text(write_toml(agreement))
        self.spec: RunSpec = parse(self.run_file.read_text())
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *_: object) -> None:
        for i in list(self.processes):
            self.kill(i)

    def command(self, i: int, *words: str, program: Sequence[str] = ("-m", "p2pfl")) -> list[str]:
        """The command line of `p2pfl` at node i."""
        return [sys.executable, *program, "--home", str(self.homes[i]), *words]

    def p2pfl(self, i: int, *words: str) -> dict[str, Any]:
        """What a command says, as JSON; it must succeed."""
        done = subprocess.run(
            self.command(i, "--json", *words), capture_output=True, cwd=self.folder, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    def ticket(self, i: int) -> str:
        """What a quorum of the founders gives node i, with founder 1's address."""
        founders = [identity.load(self.homes[j] / "identity.key") for j in range(self.spec.trust.quorum)]
        certificate = certificates.issue_certificate(
            founders[0],
            run=run_id(self.spec),
            subject=self.names[i],
            name=f"node{i}",
            now=time.time(),
            nonce=bytes(16),
        )
        for founder in founders[1:]:
            certificate = certificates.countersign(certificate, founder)
        return write_ticket(certificate, [self.addresses[1]])

    def start(self, *nodes: int, words: Sequence[str] = (), program: Sequence[str] = ("-m", "p2pfl")) -> None:
        """Start the processes of `nodes`; what they print is appended to out{i}.txt.

        words: the command, `node start` under the agreement when not given.   program: what has it.
        """
        words = words or ("node", "start", "--run", str(self.run_file))
        for i in nodes:
            with (self.folder / f"out{i}.txt").open("ab") as out:
                self.processes[i] = subprocess.Popen(
                    self.command(i, "--json", *words, program=program),
                    cwd=self.folder,
                    stdout=out,
                    stderr=out,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )

    def kill(self, i: int) -> None:
        """SIGKILL, and wait until it is gone."""
        process = self.processes.pop(i)
        process.kill()
        process.wait()

    def signal(self, i: int, number: signal.Signals, within_s: float = 15.0) -> int:
        """Send a signal and return the exit code that follows."""
        process = self.processes.pop(i)
        process.send_signal(number)
        try:
            return process.wait(within_s)
        finally:
            process.kill()

    def lose_disk(self, i: int) -> None:
        """Remove everything that a run left in a node's home; key and settings stay."""
        for path in self.homes[i].glob("store.db*"):
            path.unlink()
        shutil.rmtree(self.homes[i] / "snapshots")

    def status(self, i: int) -> dict[str, Any]:
        """What node i answers now; empty while it does not."""
        try:
            with ControlClient(self.homes[i]) as node:
                return node.get("/v1/status")
        except P2PFLError:
            return {}

    def until(self, claim: Callable[[], Any], within_s: float, about: str) -> None:
        """Return once `claim()` is true; fail with what the nodes printed last when it takes too long."""
        give_up = time.monotonic() + within_s
        while not claim():
            assert time.monotonic() < give_up, f"not within {within_s:g} s: {about}\n{self.last_words()}"
            time.sleep(_LOOK_S)

    def until_round(self, i: int, number: int, within_s: float = 60.0) -> None:
        """Wait until node i has committed training round `number` - 1."""
        self.until(
            lambda: self.status(i).get("round", -1) >= number, within_s, f"node {i} reaches round {number}"
        )

    def until_running(self, i: int, within_s: float = 30.0) -> None:
        """Wait until node i takes part in the run, or has done so."""
        self.until(
            lambda: self.status(i).get("state") in ("running", "draining", "finished"),
            within_s,
            f"node {i} runs",
        )

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass, within which the nodes go on."""
        moment = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= moment, seconds + 5, "time passes")

    def finish(self, *nodes: int, within_s: float) -> None:
        """Wait until the processes of `nodes` end by themselves, with success."""
        self.until(
            lambda: all(self.processes[i].poll() is not None for i in nodes), within_s, f"nodes {nodes} end"
        )
        codes = {i: self.processes.pop(i).returncode for i in nodes}
        assert set(codes.values()) == {0}, f"{codes}\n{self.last_words()}"

    def last_words(self) -> str:
        """The end of what every node printed."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:])
            for path in sorted(self.folder.glob("out*.txt"))
        )

    def said(self, i: int) -> Iterator[dict[str, Any]]:
        """Every JSON line that node i has printed."""
        for line in (self.folder / f"out{i}.txt").read_text(errors="replace").splitlines():
            if line.startswith("{") and line.endswith("}"):
                yield json.loads(line)

    def events(self, i: int) -> list[dict[str, Any]]:
        """Every event in node i's store; it must not run."""
        with Store.open(self.homes[i]) as store:
            return store.events(limit=100_000)

    def rounds(self, i: int) -> list[dict[str, Any]]:
        """The rounds in node i's store; it must not run."""
        with Store.open(self.homes[i]) as store:
            return store.rounds(run_id(self.spec))

    def mass(self) -> MassAudit:
        """Where the mass is, by the ledgers on the disks; no node may run."""
        return mass_on_disk(dict(zip(self.names, self.homes, strict=True)), self.spec)

    def rss_mb(self, i: int) -> float:
        """Memory of node i's own process now, its learner's not counted."""
        return float(psutil.Process(self.processes[i].pid).memory_info().rss) / 1e6
