"""Several sites that exchange knowledge in one process, driven as knowledge/exchange.py says, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.errors import RemoteError
from p2pfl.ids import PeerId
from p2pfl.knowledge.exchange import Exchange, Heading
from p2pfl.work import Job, Result

__all__ = ["Site", "Sites"]


@dataclass(kw_only=True)
class Site:
    """A policy, its state, and a learner: a function from a job to its result, None when it fails."""

    exchange: Exchange[Any]
    learner: Callable[[Job], Result | None]
    state: Any = None
    jobs: list[Job] = field(default_factory=list)
    received: list[Heading] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def work(self) -> None:
        """Every job of this phase, each once even when it fails."""
        failed: set[type] = set()
        while jobs := [job for job in self.exchange.jobs(self.state) if type(job) not in failed]:
            for job in jobs:
                self.jobs.append(job)
                result = self.learner(job)
                if result is None:
                    failed.add(type(job))
                else:
                    self.state = self.exchange.made(self.state, result)


class Sites:
    """A complete graph of sites.  `cut` are pairs whose packets are lost, `sent` the bytes of each sender."""

    def __init__(self, sites: Mapping[PeerId, Site]) -> None:
        self.sites = dict(sites)
        self.cut: set[tuple[PeerId, PeerId]] = set()
        self.sent: dict[PeerId, int] = {}
        self._offered: set[tuple[Any, ...]] = set()
        for site in self.sites.values():
            site.state = site.exchange.start()

    def round(
        self, number: int, *, middle: Callable[[], None] = lambda: None
    ) -> dict[PeerId, frozenset[PeerId]]:
        """One round of every site; `middle` runs between its phases.

        Returns whom each waited for in vain.
        """
        self.sent = dict.fromkeys(self.sites, 0)
        for me, site in self.sites.items():
            others = frozenset(self.sites) - {me}
            site.state = site.exchange.begin(site.state, number, hears=others, tells=others)
            site.jobs, site.received = [], []
        self._phase()
        missed = {me: site.exchange.awaited(site.state) for me, site in self.sites.items()}
        for site in self.sites.values():
            site.state = site.exchange.turn(site.state)
        middle()
        self._phase()
        for me, site in self.sites.items():
            missed[me] |= site.exchange.awaited(site.state)
        return missed

    def gone(self, peer: PeerId) -> None:
        """`peer` dies, and all others notice."""
        del self.sites[peer]
        for site in self.sites.values():
            site.state = site.exchange.peer_gone(site.state, peer)

    def _phase(self) -> None:
        for site in self.sites.values():
            site.work()
        for me, site in sorted(self.sites.items()):
            for offer in site.exchange.offers(site.state):
                for recipient in offer.recipients:
                    once = (me, recipient, offer.kind, offer.round)
                    if once in self._offered:
                        continue
                    self._offered.add(once)
                    self.sent[me] += offer.body.size
                    if recipient in self.sites and (me, recipient) not in self.cut:
                        heading = Heading(sender=me, round=offer.round, kind=offer.kind, size=offer.body.size)
                        deliver(self.sites[recipient], heading, offer.body.tobytes())
        for site in self.sites.values():
            site.work()


def deliver(site: Site, heading: Heading, body: bytes) -> None:
    """A header, and its body when it is wanted."""
    if (reason := site.exchange.verdict(site.state, heading)) is not None:
        site.refused.append(reason)
        return
    try:
        site.state = site.exchange.absorb(site.state, heading, body)
    except RemoteError as error:
        site.refused.append(str(error))
    else:
        site.received.append(heading)
