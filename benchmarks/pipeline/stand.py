"""A whole AOS with a thousand no-op agents, and one load after the other through it."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pyarrow as pa
from confluent_kafka.admin import AdminClient

from aos.codecs.settings import Settings
from aos.infra.up import Up
from benchmarks.pipeline import signals
from benchmarks.pipeline.workload import STEPS_OF_WORKFLOW, TENANTS, Load, is_workflow
from benchmarks.usage import Cores, Sample, between, sample

ROOT = Path(__file__).resolve().parent.parent.parent
AGENTS = 1_000
SERVICES = 4
PREPARE_S = 300.0  # for making the messages of a load
LEAD_S = 1.0  # from "go" to the first message
EDGE_S = 0.25  # the last sample is taken so long before the end, while the producers are still there
SQL_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """What came of a load. `results`: a row for each result that arrived, in order of arrival."""

    load: Load
    start: float
    sent: int
    refused: int
    late_ms_p99: float
    results: pa.Table
    messages: int
    cores: Cores
    processors: dict[str, dict[str, float]]
    sql_results: int
    sql_matched: int
    sql_ms: float
    restarts: int  # of workers, since the load began: its CPU figures are then too small
    probed: tuple[Any, Any] = (None, None)


@contextmanager
def standing(settings: Settings, say: Callable[[str], None]) -> Iterator[Stand]:
    """AOS, its workers and four services up; given servers get a prefix and a database of the benchmark's own."""
    with _own(settings) as own, Up(own, say=say) as up:
        stand = Stand(up)
        stand.start_services()
        say(f"{AGENTS} agents in {SERVICES} services are registered")
        yield stand


@contextmanager
def _own(settings: Settings) -> Iterator[Settings]:
    """Settings of the benchmark; what it makes on given servers is removed again."""
    tag = f"bench{time.time_ns() // 1_000_000}"
    settings = dataclasses.replace(settings, tenants=TENANTS, prefix=f"{tag}." if settings.bootstrap else "")
    if settings.bootstrap and not settings.secret:
        settings = dataclasses.replace(settings, secret=tag)
    given = settings.database_url
    if given:
        with psycopg.connect(given, autocommit=True) as link:
            link.execute(f"CREATE DATABASE {tag}".encode())
        url = urlunsplit(urlsplit(given)._replace(path=f"/{tag}"))
        settings = dataclasses.replace(settings, database_url=url)
    try:
        yield settings
    finally:
        if given:
            with psycopg.connect(given, autocommit=True) as link:
                link.execute(f"DROP DATABASE {tag} WITH (FORCE)".encode())
        if settings.bootstrap:
            admin = AdminClient({"bootstrap.servers": settings.bootstrap})
            names = [
                name for name in admin.list_topics(timeout=10).topics if name.startswith(settings.prefix)
            ]
            for done in admin.delete_topics(names).values() if names else ():
                done.result(30)


class Stand:
    """The running system and how to load it."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self._children = up.stack.children
        self._services = [f"noop-{number}" for number in range(SERVICES)]

    def start_services(self) -> None:
        """All agents registered, as SQL sees them."""
        settings = self.up.settings
        share = AGENTS // SERVICES
        for number, name in enumerate(self._services):
            argv = [sys.executable, "-m", "benchmarks.pipeline.service", name]
            argv += [str(number * share), str(share), str(settings.partitions)]
            env = {
                "AOS_BOOTSTRAP": settings.bootstrap, "AOS_PREFIX": settings.prefix, "PATH": "/usr/bin:/bin",
            }  # fmt: skip
            log = self.up.stack.data_dir / f"{name}.log"
            self._children.spawn(name, argv, env=env, cwd=ROOT, log_path=log)
        ends = time.monotonic() + SQL_S
        while self._one("SELECT count(*) FROM aos.agents") < AGENTS:
            if time.monotonic() > ends:
                raise RuntimeError(f"not all agents are registered after {SQL_S:.0f} s")
            time.sleep(0.1)

    def pids(self) -> dict[str, int]:
        """All processes of the system by name; producers and consumer are those of the load."""
        names = {"broker": "kafka", "database": "postgres"}
        names |= {f"worker {group}": f"worker-{group}-0" for group in self.up._groups}
        names |= {f"service {name}": name for name in self._services}
        names |= {name: name for name in ("consumer", *(f"producer-{n}" for n in range(16)))}
        found = {name: self._children.pid(child) for name, child in names.items()}
        return {name: pid for name, pid in found.items() if pid is not None}

    def run(self, load: Load, drain_s: float, probe: Callable[[], Any] = lambda: None) -> Outcome:
        """Put a load through; results may come until `drain_s` after its last message.

        `probe` is called when the load begins and shortly before it ends.
        """
        folder = self.up.stack.data_dir / f"load-{load.label}"
        folder.mkdir()
        producers = [f"producer-{number}" for number in range(load.producers)]
        self._spawn(folder, load, drain_s)
        signals.wait_for(folder, ["consumer", *producers], "ready", PREPARE_S, self._alive)
        start = time.time() + LEAD_S
        signals.say_go(folder, start)
        _sleep_until(start)
        probed, before, metrics, restarts = probe(), self._sample(), self.metrics(), self._restarts()
        _sleep_until(start + load.seconds - EDGE_S)
        cores = between(before, self._sample())
        processors, probed = rates(metrics, self.metrics()), (probed, probe())
        signals.wait_for(
            folder, [*producers, "consumer"], "json", load.seconds + drain_s + PREPARE_S, self._alive
        )
        for name in (*producers, "consumer"):
            self._children.wait(name, PREPARE_S)
        reports = [signals.reported(folder, name) for name in producers]
        with pa.memory_map(str(folder / "results.arrow")) as source:
            results = pa.ipc.open_file(source).read_all()
        stored, matched, took_ms = self._in_sql(load, start, len(results.column("number").unique()))
        return Outcome(
            load,
            start,
            sum(found["sent"] for found in reports),
            sum(found["refused"] for found in reports),
            max(found["late_ms"]["p99"] for found in reports),
            results,
            signals.reported(folder, "consumer")["messages"],
            cores,
            processors,
            stored,
            matched,
            took_ms,
            self._restarts() - restarts,
            probed,
        )

    def _spawn(self, folder: Path, load: Load, drain_s: float) -> None:
        settings = self.up.settings
        common = {"bootstrap": settings.bootstrap, "prefix": settings.prefix, "folder": str(folder)}
        given: dict[str, Any] = {"total": load.total, "limit_s": load.seconds + drain_s}
        self._start("consumer", "consumer", folder, {**common, **given})
        for number in range(load.producers):
            given = {**common, "number": number, "load": load.as_dict()}
            self._start(f"producer-{number}", "producer", folder, given)

    def _start(self, name: str, program: str, folder: Path, given: dict[str, Any]) -> None:
        argv = [sys.executable, "-m", f"benchmarks.pipeline.{program}", json.dumps(given)]
        self._children.spawn(name, argv, cwd=ROOT, log_path=folder / f"{name}.log")

    def _alive(self, name: str) -> bool:
        return self._children.pid(name) is not None

    def _restarts(self) -> int:
        return sum(self._children.restarts(f"worker-{group}-0") for group in self.up._groups)

    def _sample(self) -> Sample:
        return sample(self.pids())

    def metrics(self) -> dict[str, tuple[float, dict[str, float]]]:
        """Of every processor, what its worker last said and when."""
        found = {}
        for group in self.up._groups:
            said = json.loads(self.up.status_file(group).read_text())
            found.update({name: (said["at"], counts) for name, counts in said["processors"].items()})
        return found

    def _one(self, query: str, *given: Any) -> Any:
        with psycopg.connect(self.up.settings.database_url, autocommit=True) as link:
            row = link.execute(query.encode(), given).fetchone()
        assert row is not None
        return row[0]

    def _in_sql(self, load: Load, start: float, wanted: int) -> tuple[int, int, float]:
        """Final rows of the load in SQL, those that have an assignment of every step, and the time it took to ask."""
        ends = time.monotonic() + SQL_S
        while True:
            asked = time.monotonic()
            with psycopg.connect(self.up.settings.database_url, autocommit=True) as link:
                window = (start - 1, start + load.seconds + 1)
                row = link.execute(MATCHED.encode(), (*window, *window, f"{load.label}-%")).fetchone()
            assert row is not None
            if row[0] >= wanted or time.monotonic() > ends:
                return int(row[0]), int(row[1]), (time.monotonic() - asked) * 1e3
            time.sleep(0.5)


MATCHED = """
SELECT count(*), count(*) FILTER (WHERE d.steps >= t.steps_count)
FROM aos.tasks t
LEFT JOIN (
    SELECT requested_at, request_id, round, count(DISTINCT step) AS steps
    FROM aos.decisions
    WHERE kind = 'assigned' AND requested_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)
    GROUP BY requested_at, request_id, round
) d USING (requested_at, request_id, round)
WHERE t.requested_at BETWEEN to_timestamp(%s) AND to_timestamp(%s) AND t.id LIKE %s AND t.status <> 'open'
"""


def rates(
    before: dict[str, tuple[float, dict[str, float]]], after: dict[str, tuple[float, dict[str, float]]]
) -> dict[str, dict[str, float]]:
    """What each processor did between two statuses of its worker."""
    found = {}
    for name, (at, counts) in after.items():
        earlier, old = before.get(name, (at, counts))
        seconds = at - earlier
        if seconds <= 0:
            continue
        grown = {key: value - old.get(key, 0) for key, value in counts.items()}
        rows = max(grown["rows_in"], 1)
        found[name] = {
            "messages_in_s": round(grown["messages_in"] / seconds, 1),
            "rows_in_s": round(grown["rows_in"] / seconds, 1),
            "rounds_s": round(grown["rounds"] / seconds, 1),
            "messages_out_s": round(grown["messages_out"] / seconds, 1),
            "rows_a_message": round(grown["rows_in"] / max(grown["messages_in"], 1), 1),
            "step_us_a_row": round(grown["step_s"] * 1e6 / rows, 1),
            "step_share": round(grown["step_s"] / seconds, 3),
            "deliver_share": round(grown["deliver_s"] / seconds, 3),
        }
    return found


def steps_of(load: Load) -> int:
    """Steps that the agents were asked for in all."""
    workflows = sum(is_workflow(number) for number in range(load.total))
    return load.total + workflows * (STEPS_OF_WORKFLOW - 1)


def _sleep_until(moment: float) -> None:
    while (left := moment - time.time()) > 0:
        time.sleep(left)
