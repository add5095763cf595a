"""The stand: the real stack, every part in a process group of its own, with handles for faults.

Names of processes: `worker-edge-0`, `worker-core-0`, `worker-learning-0`, `worker-keeping-0`, `service-one`,
`service-two`, `kafka`, `postgres`, `load`. Links (only with ``links=True``): `<client>->broker` for each of
`LINK_CLIENTS` and `worker-keeping->database`; all are steered by `stand.proxy`, a `tests.chaos.proxy.Control`.
`stand.settings` has the direct addresses: for the stand itself, the judge and faults that produce by hand.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from aos.codecs.settings import Settings
from aos.infra.local.children import Children
from aos.infra.local.host import LOOPBACK, Host, free_port
from aos.infra.local.timescale import Database
from aos.infra.security.certificates import ensure_ca
from aos.infra.security.connections import surroundings
from aos.infra.security.local import secure_broker
from aos.infra.settings import environment
from aos.infra.up import SHARED, Up, outside, worker_name
from aos.streams.topology import GROUPS
from tests.chaos.doors import LinkedBroker
from tests.chaos.hands import InHand
from tests.chaos.observe import Notes, Sampler, keep_all

if TYPE_CHECKING:
    from tests.chaos.proxy_control import Control

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "tests/chaos/service.py"
TENANTS = ("default", "acme", "umbra")
SECRET = "canary-8f1d-token-key"
LINK_CLIENTS = ("worker-edge", "worker-core", "worker-learning", "worker-keeping", "services", "load")
TO_DATABASE = "worker-keeping->database"
BACK_S = 60.0


class ChaosUp(Up):
    """Workers that reach broker and database by their links, started by a program of the stand's choice."""

    stand: Stand

    def start_worker(self, group: str, ordinal: int = 0) -> int:
        self.status_file(group, ordinal).unlink(missing_ok=True)
        name = worker_name(group, ordinal)
        argv = [*self.stand.programs.get(name, self.stand.worker_program), "--ordinal", str(ordinal)]
        argv += ["--processors", ",".join(self._groups[group])]
        argv += ["--status-file", str(self.status_file(group, ordinal))]
        seen = self.stand.settings_by_link(f"worker-{group}")
        return self.stack.children.spawn(
            name,
            argv,
            env={**outside(), **environment(seen), **self.stand.environ.get(name, {})},
            cwd=ROOT,
            log_path=self.log_file(group, ordinal),
            restart=True,
        )


class Stand:
    """``with Stand(folder) as stand:`` the whole stack runs; what it saw is in `folder` afterwards."""

    def __init__(
        self,
        folder: Path,
        *,
        links: bool = False,
        secure: bool = False,
        services: Sequence[str] = ("one",),
        worker_program: Sequence[str] = (sys.executable, "-m", "aos", "worker"),
        **settings: Any,
    ) -> None:
        """`settings`: further settings of AOS. `worker_program`: what starts a worker (planted bugs, old versions).
        `secure`: workers and services come to the broker over TLS, as users with rights; stand, load, judge do not."""
        self.folder = folder
        self.secure = secure
        self.links, self.services, self.worker_program = links, tuple(services), tuple(worker_program)
        self.environ: dict[
            str, dict[str, str]
        ] = {}  # process -> more of its environment, from its next start on
        self.programs: dict[
            str, Sequence[str]
        ] = {}  # worker -> what starts it instead, from its next start on
        self.settings = Settings(**{
            "tenants": TENANTS, "secret": SECRET, "snapshot_s": 5.0, "data_dir": str(folder / "data"), **settings,
        })  # fmt: skip
        self.secured: Settings | None = None  # of a secure stand: how everybody else speaks to the broker
        self.proxy: Control  # only with links
        self.kills = 0  # with work in hand
        self.killed_at = 0.0  # time.time() of the last one
        self.up: ChaosUp
        self.broker: LinkedBroker
        self.database: Database
        self.children: Children  # broker, database, load; workers and services are `up.stack.children`
        self._ports: dict[str, tuple[int, int]] = {}

    # ── life ──────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Stand:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)
        self.notes = Notes(self.folder / "observations.ndjson")
        self.children = Children()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        host = Host.current()
        ca = ensure_ca(self.folder / "security") if self.secure else None
        self.broker = LinkedBroker(host, self.children, self.folder / "kafka", ca=ca)
        self.database = Database(host, self.children, self.folder / "postgres")
        self._make_links()
        for part in (self.broker, self.database):
            part.prepare()
            part.start()
        self.settings = dataclasses.replace(
            self.settings, bootstrap=self.broker.open_bootstrap, database_url=self.database.url
        )
        if ca is not None:
            named = dataclasses.replace(
                self.settings, bootstrap=self.broker.bootstrap, services=self.services
            )
            self.secured = secure_broker(named, self.broker, ca)
        self.up = ChaosUp(self.settings)
        self.up.stand = self
        self.up.__enter__()
        keep_all(self.settings.bootstrap, self.settings.prefix + "aos.beliefs")
        for name in self.services:
            self.start_service(name)
        self.in_hand = InHand(self.settings, self.services)
        self._sampler = Sampler(self.notes, self.pids, self.settings.database_url)
        self._sampler.start()
        self.note("up", bootstrap=self.settings.bootstrap, database_url=self.settings.database_url)

    def __exit__(self, *_: object) -> None:
        for part in ("_sampler", "in_hand"):
            if hasattr(self, part):
                getattr(self, part).close()
        if hasattr(self, "up"):
            self.up.stop()
        self.children.close()
        self.notes.close()

    def _make_links(self) -> None:
        """A proxy process in front of the broker's listeners and of the database; nothing without `links`."""
        if not self.links:
            return
        from tests.chaos.proxy_control import Control, command

        ports = {f"{client}->broker": (free_port(), free_port()) for client in LINK_CLIENTS}
        ports[TO_DATABASE] = (self.database.port, free_port())
        steer = free_port()
        argv = command({link: (front, behind) for link, (behind, front) in ports.items()}, steer)
        self.children.spawn("proxy", argv, cwd=ROOT, log_path=self.folder / "proxy.log")
        self.proxy = Control(steer)
        self.proxy.wait()
        self._ports = ports
        self.broker.links = {link: pair for link, pair in ports.items() if link != TO_DATABASE}

    def settings_by_link(self, client: str) -> Settings:
        """The settings as a client sees them: the addresses of its proxies where it has some."""
        seen: dict[str, Any] = {}
        if self.secured is not None and client != "load":
            seen = {name: getattr(self.secured, name) for name in ("bootstrap", *SHARED)} | {
                "kafka_username": ""
            }
        if f"{client}->broker" in self._ports:
            seen["bootstrap"] = f"{LOOPBACK}:{self._ports[f'{client}->broker'][1]}"
        if f"{client}->database" in self._ports:
            url = self.settings.database_url
            seen["database_url"] = url.replace(
                f":{self.database.port}/", f":{self._ports[f'{client}->database'][1]}/"
            )
        return dataclasses.replace(self.settings, **seen)

    def start_service(self, name: str, program: Path = SERVICE, *arguments: str) -> int:
        """A service as a process that comes back when it is killed; its name in the stand is `service-<name>`."""
        seen = self.settings_by_link("services")
        env = {**surroundings(seen), "PATH": "/usr/bin:/bin"}
        return self.up.stack.children.spawn(
            f"service-{name}",
            [sys.executable, str(program), name, *arguments],
            env={**env, **self.environ.get(f"service-{name}", {})},
            log_path=self.up.stack.data_dir / f"service-{name}.log",
            restart=True,
        )

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    def note(self, event: str, **what: Any) -> None:
        """Write an event into the observations file."""
        self.notes.note(event, **what)

    def workers(self) -> list[str]:
        """Names of the workers, in the topology's order."""
        return [worker_name(group, 0) for group in GROUPS]

    def processes(self) -> list[str]:
        """Everybody who does AOS's work: workers and services."""
        return [*self.workers(), *(f"service-{name}" for name in self.services)]

    def pids(self) -> dict[str, int]:
        """Process ids by name, of all that run now, broker and database among them."""
        names = [*self.processes(), self.broker.name, self.database.name, "load"]
        return {name: pid for name in names if (pid := self.pid(name)) is not None}

    def pid(self, name: str) -> int | None:
        """A process's id, None while it does not run."""
        return self._keeper(name).pid(name)

    def log_of(self, name: str) -> Path:
        """A process's log."""
        servers = {self.broker.name: self.broker.log, self.database.name: self.database.log}
        return servers.get(name, self.folder / "data" / f"{name}.log")

    def logs(self) -> list[Path]:
        """All logs of the run."""
        return sorted({*self.folder.rglob("*.log")})

    def ready(self, name: str, since: float = 0.0) -> bool:
        """Whether a worker said after `since` (time.time()) that it is ready; a service: whether it runs."""
        if not name.startswith("worker-"):
            return self.pid(name) is not None
        _, group, ordinal = name.split("-")
        return self.up.ready(group, int(ordinal), since)

    def wait_ready(self, since: float = 0.0, limit_s: float = BACK_S) -> bool:
        """Wait until every worker has said after `since` that it is ready; False when one has not in time."""
        ends = time.monotonic() + limit_s
        while not all(self.ready(name, since) for name in self.workers()):
            if time.monotonic() > ends:
                return False
            time.sleep(0.1)
        return True

    def wait_work(self, limit_s: float = BACK_S) -> bool:
        """Wait until another result is written; False when none is in time."""
        before, ends = self.in_hand.results(), time.monotonic() + limit_s
        while before is None or (self.in_hand.results() or 0) <= before:
            if time.monotonic() > ends:
                return False
            time.sleep(0.1)
            before = self.in_hand.results() if before is None else before
        return True

    def wait_calm(self, limit_s: float = BACK_S) -> bool:
        """Wait until what was sent by now is taken in, stored and ended; False when that is not so in time."""
        began, ends = time.time(), time.monotonic() + limit_s
        for process in ("worker-edge-0", "worker-keeping-0"):
            wanted = None
            while wanted is None or not self.in_hand.done(process, wanted):
                if time.monotonic() > ends:
                    return False
                time.sleep(0.2)
                wanted = wanted or self.in_hand.all_ends(process)
        while self._unfinished(began) > 0:
            if time.monotonic() > ends:
                return False
            time.sleep(0.2)
        return True

    def _unfinished(self, before: float) -> float:
        """Requests of before that time that SQL knows without a result; without end where it does not say."""
        query = "SELECT count(*) FROM aos.unfinished WHERE requested_at < to_timestamp(%s)"
        try:
            with psycopg.connect(self.settings.database_url, autocommit=True, connect_timeout=5) as link:
                row = link.execute(query, (before,)).fetchone()
        except psycopg.Error:
            return math.inf
        return float(row[0]) if row else math.inf

    # ── faults ────────────────────────────────────────────────────────────────────────────────────

    def kill(self, name: str) -> bool:
        """SIGKILL with work in hand; False when there never was any (then nothing was killed). It comes back."""
        return self.kill_together([name]) == 1

    def kill_together(self, names: Sequence[str]) -> int:
        """SIGKILL several at once, at a moment when one at least has work in hand; how many had (0: nobody killed)."""
        keeper = self.up.stack.children
        for _ in range(InHand.TRIES):
            ends = {name: self.in_hand.ends(name) for name in names}
            time.sleep(InHand.READ_S)
            for name in names:
                keeper.signal(name, signal.SIGSTOP)
            busy = [name for name in names if self.in_hand.has(name, ends[name])]
            if busy:
                self.kill_now(names, busy)
                return len(busy)
            for name in names:
                keeper.signal(name, signal.SIGCONT)
            time.sleep(0.02)
        self.note("kill-without-work", names=list(names))
        return 0

    def kill_now(self, names: Sequence[str], busy: Sequence[str]) -> None:
        """SIGKILL at once; those in `busy` had work in hand, by the caller's proof, and count."""
        self.killed_at = time.time()
        for name in names:
            self.up.stack.children.kill(name)
        self.kills += len(busy)
        for name in names:
            self.note("kill", at=self.killed_at, name=name, busy=name in busy)

    def signal(self, name: str, signum: int) -> None:
        """Send a signal to a process's group."""
        self._keeper(name).signal(name, signum)

    def kill_broker(self) -> None:
        """SIGKILL the broker; it does not come back by itself."""
        self.note("broker-killed")
        self.broker.kill()

    def stop_broker(self, limit_s: float = 30.0) -> None:
        """End the broker in good order (SIGTERM)."""
        self.note("broker-stopped")
        self.broker.stop(limit_s)

    def start_broker(self) -> None:
        """Start the broker again on its port and data; returns when it answers."""
        self.broker.start()
        self.note("broker-back")

    def kill_database(self) -> None:
        """SIGKILL the database and all its backends; it does not come back by itself."""
        self.note("database-killed")
        self.database.kill()

    def stop_database(self, limit_s: float = 30.0) -> None:
        """End the database in good order."""
        self.note("database-stopped")
        self.database.stop(limit_s)

    def start_database(self) -> None:
        """Start the database again; returns when it takes connections."""
        self.database.start()
        self.note("database-back")

    def _keeper(self, name: str) -> Children:
        servers = (self.broker.name, self.database.name, "load")
        return self.children if name in servers else self.up.stack.children
