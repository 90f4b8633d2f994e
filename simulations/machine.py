"""One simulated machine: a disk that survives, and a process that does not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from p2pfl.consortium import Consortium
from p2pfl.events import Fact, Snapshot, Started, Train, Trained, Validate, Validated
from p2pfl.ids import PeerId, RunId
from p2pfl.learn.factory import build
from p2pfl.learn.jobs import Workshop
from p2pfl.learn.learner import DISTILL_ROWS, LearnerFactory, Site
from p2pfl.learn.options import at_role
from p2pfl.node.learner_process import GRACE_S
from p2pfl.participant import Participant
from p2pfl.peer import Peer
from p2pfl.run import RunSpec, dp_sgd_of, exchange_of
from p2pfl.trust import membership
from p2pfl.trust.certificates import MAX_SIGNATURES
from p2pfl.trust.identity import Identity, verify
from p2pfl.trust.membership import Membership
from p2pfl.trust.privacy import Account, encode
from p2pfl.trust.relations import Level, Relations
from p2pfl.work import Distill, Fit, Job, Learn, Work, Worked

__all__ = ["Machine", "SimulatedSite", "founded_by", "identities"]

# The share of a step that is as good as all of it: times are rounded sums, and 4.02 - 3.02 is less than 1.
_WHOLE = 1.0 - 1e-9
# Purpose of the draw that shuffles a teacher: "shuf" in ASCII.
_SHUFFLE = 0x73687566


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSite:
    """What a site brings: its learner, and how fast its machine is (virtual seconds).

    learn_s: of a hub's learning and of a distillation; None is a fit's time.   evaluate_s: also of every
    other job of knowledge exchange.   shares_features: it may tell features of single rows to every founder,
    as its people would allow by `p2pfl trust set`.   around: puts something between its peer and the world,
    as an attacker does.   shuffles_teacher: each soft label that it learns from is another row's.
    meters: counts what the learner's torch modules compute.
    """

    factory: LearnerFactory
    site: Site = field(default_factory=Site)
    fit_s: float = 1.0
    learn_s: float | None = None
    evaluate_s: float = 0.0
    starts_at_s: float = 0.0
    memory_bytes: int = 4096 * 10**6
    publishes_edges: bool = False
    shares_features: bool = False
    shuffles_teacher: bool = False
    meters: bool = False
    around: Callable[[Peer], Participant] = lambda peer: peer


def identities(n: int, seed: int) -> list[Identity]:
    """N keys made of the run's seed, by PeerId, so that peer number i is position i of every plan."""
    seeds = (hashlib.sha256(f"p2pfl-simulation/{seed}/{i}".encode()).digest() for i in range(n))
    return sorted((Identity(s) for s in seeds), key=lambda identity: identity.peer_id)


def founded_by(run: RunId, peers: list[PeerId]) -> Membership:
    """A membership that all simulated peers found, with the smallest quorum that is a majority."""
    quorum = len(peers) // 2 + 1
    if quorum <= MAX_SIGNATURES:
        return membership.genesis(run, peers, quorum)
    # More than can sign a certificate: nobody will be admitted or revoked here.
    return Membership(run=run, founders=tuple(sorted(peers)), quorum=quorum)


class Machine:
    """The site numbered `index`.  `life` counts starts and stops: what is of an earlier life is void."""

    def __init__(
        self,
        index: int,
        identity: Identity,
        site: SimulatedSite,
        spec: RunSpec,
        founders: Membership,
        seed: int,
    ) -> None:
        self.index, self.identity, self.site, self.spec = index, identity, site, spec
        self.name = identity.peer_id
        self.life = 0
        self.peer: Participant | None = None
        self.disk: Snapshot | None = None
        self.facts: list[tuple[float, Fact]] = []
        self.bytes_sent = 0
        self.bytes_sent_by_peers_round = 0
        self.offers: dict[tuple[int, int, int], NDArray[np.uint8]] = {}
        self.doomed_after: int | None = None
        self.timer: float | None = None
        self.finished = ""
        self.multiply_adds = 0
        self._founders, self._seed = founders, seed
        self._workshop: Workshop | None = None
        self._looks_left: float = float("inf")
        self._has_looked = False

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self.peer is not None

    def boot(self) -> Started:
        """Start a process: a new peer and a new learner.  Returns the event that its peer is to hear first.

        Raises LearnerError when the learner cannot be built.
        """
        self.life += 1
        self.timer, self.doomed_after, self.offers = None, None, {}
        draw = hashlib.sha256(f"{self._seed}/{self.index}/{self.life}".encode()).digest()
        self.peer = self.site.around(
            Peer(
                me=self.name,
                spec=self.spec,
                consortium=Consortium(self._founders, own=self._relations(), verify=_verify),
                boot_session=int.from_bytes(draw[:8], "big") >> 1,
                entropy=hashlib.sha256(draw).digest(),
                memory_bytes=self.site.memory_bytes,
                publishes_edges=self.site.publishes_edges,
            )
        )
        site = replace(self.site.site, seed=self.spec.run.seed, should_stop=self._should_stop)
        site = replace(site, dp_sgd=dp_sgd_of(self.spec), **exchange_of(self.spec))
        if site.options is None:
            site = replace(site, options=at_role(self.spec.learner, site.role))
        workshop = self._workshop = Workshop(partial(build, self.site.factory), site)
        ready = workshop.ready()
        return Started(
            snapshot=None if self.disk is None else _copy(self.disk),
            parameters=ready.parameters,
            samples=ready.samples,
            schema_hash=ready.schema_hash,
            statistics=ready.statistics,
            release=ready.release,
            expected=ready.expected,
            account=(self.disk and self.disk.account) or encode(Account(data_set=ready.data_set)),
        )

    def halt(self) -> None:
        """The process is gone, and everything that was not committed with it."""
        self.life += 1
        self.peer, self._workshop, self.timer, self.doomed_after, self.offers = None, None, None, None, {}

    def write(self, snapshot: Snapshot) -> None:
        """Make `snapshot` what the next start finds: a copy, so that no array in memory is part of it."""
        self.disk = _copy(snapshot)

    def fit_ends_at(self, job: Train, now: float) -> float:
        """When the fit ends: by itself, or stopped at the round's deadline."""
        return max(now, min(now + self.site.fit_s, job.deadline))

    def train(self, job: Train, took_s: float) -> tuple[Trained, float]:
        """The fit's result after `took_s`, and the seconds until it is there.

        Of a fit of so many steps that takes longer than `took_s`, those are done that the time was enough
        for, and `should_stop` says so to who looks.  Who never looks goes on to the end, and is killed when
        that is more than a grace away, as a node kills it.
        """
        assert self._workshop is not None
        steps = self.site.site.local_steps or self.spec.learner.local_steps
        done = took_s / self.site.fit_s if self.site.fit_s > 0 else 1.0
        is_whole = done >= _WHOLE
        self._looks_left = float("inf") if is_whole else int(done * steps + 1.0 - _WHOLE)
        self._has_looked = False
        with self._metered():
            trained = self._workshop.train(job)
        if is_whole or self._has_looked:
            return trained, 0.0
        late_s = self.site.fit_s - took_s
        if late_s > GRACE_S:
            fault = "the learner did not stop by the deadline"
            return Trained(round=job.round, parameters=None, fault=fault), GRACE_S
        return trained, late_s

    def work_ends_at(self, job: Work, now: float) -> float:
        """When a job of knowledge exchange ends: by itself, or stopped at its deadline."""
        return max(now, min(now + self._takes_s(job.job), job.deadline))

    def work(self, job: Work, took_s: float) -> Worked:
        """The job's result: partial work when `took_s` is less than it takes, where it has steps."""
        takes_s = self._takes_s(job.job)
        done = took_s / takes_s if takes_s > 0 else 1.0
        self._looks_left = float("inf") if done >= _WHOLE else int(done * self._steps(job.job))
        with self._metered():
            return self.workshop.work(self._shuffled(job) if self.site.shuffles_teacher else job)

    @contextmanager
    def _metered(self) -> Iterator[None]:
        """Inside, `multiply_adds` grows by what the learner computes."""
        if not self.site.meters:
            yield
            return
        from p2pfl.learn.cost import Meter, metered

        meter = Meter()
        with metered(meter):
            yield
        self.multiply_adds += meter.multiply_adds

    def _shuffled(self, job: Work) -> Work:
        """The job with its teacher's soft labels dealt to other rows, as by who keys them by batch."""
        if not isinstance(job.job, Fit) or job.job.teacher is None:
            return job
        teacher = job.job.teacher
        rng = np.random.default_rng([self.spec.run.seed, _SHUFFLE, self.index, job.round])
        dealt = rng.permutation(len(teacher.log_p))
        return replace(job, job=replace(job.job, teacher=replace(teacher, log_p=teacher.log_p[dealt])))

    def _takes_s(self, job: Job) -> float:
        match job:
            case Fit():
                return self.site.fit_s
            case Learn() | Distill():
                return self.site.fit_s if self.site.learn_s is None else self.site.learn_s
            case _:
                return self.site.evaluate_s

    def _steps(self, job: Job) -> float:
        """How often a whole job looks whether it should stop."""
        options = self.site.site.options or at_role(self.spec.learner, self.site.site.role)
        match job:
            case Learn():
                rows = sum(samples.labels.size for samples in job.features.values())
                return float(-(-options.hub_epochs * rows // options.hub_batch_size))
            case Distill():
                return -(-job.epochs * int(job.is_used.sum()) // DISTILL_ROWS)
            case _:
                return self.site.site.local_steps or options.local_steps

    def validate(self, job: Validate) -> Validated:
        """The losses of other peers' models, whole: nothing says stop."""
        assert self._workshop is not None
        self._looks_left = float("inf")
        return self._workshop.validate(job)

    @property
    def workshop(self) -> Workshop:
        """The learner at work."""
        assert self._workshop is not None
        return self._workshop

    def _relations(self) -> Relations:
        if not self.site.shares_features:
            return Relations()
        told = {name: Level.NORMAL for name in self._founders.founders if name != self.name}
        return Relations(only={("features", "share"): told})

    def _should_stop(self) -> bool:
        self._has_looked = True
        self._looks_left -= 1
        return self._looks_left < 0


def _verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    return verify(peer, b"", data, signature)


def _copy(snapshot: Snapshot) -> Snapshot:
    return Snapshot(
        arrays={name: np.array(array) for name, array in snapshot.arrays.items()},
        ledger=bytes(snapshot.ledger),
        account=bytes(snapshot.account),
    )


# A hook that sees every fact a peer notes: (time, machine number, fact).
Listener = Callable[[float, int, Fact], None]
