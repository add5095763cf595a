"""From settings to a running worker: topics, deployment, options. The one place where everything meets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import psycopg
import pyarrow as pa
from threadpoolctl import threadpool_limits

from aos.agents.sdk.security import Security
from aos.codecs.errors import SettingsError, TransientError
from aos.codecs.settings import Settings
from aos.codecs.topics import EDGE_BYTES_MAX, TOPICS, all_topics, inbox, shared_counts, tenant_topic
from aos.infra.retention import run_now
from aos.infra.security.connections import security
from aos.infra.statistics import analyze_young
from aos.streams.live import in_force
from aos.streams.processor import Law, Processor
from aos.streams.shell.codec import ORDERS, WireCodec
from aos.streams.shell.crew import worker_of
from aos.streams.shell.options import Options
from aos.streams.shell.sinks import Sink
from aos.streams.shell.topics import Admin, TopicSpec, provision, spec_of
from aos.streams.shell.worker import Deployment, Worker, run
from aos.streams.topology import GROUPS, PROCESSORS, VIEWS

log = logging.getLogger("aos.runtime")

RETAIN_S = 60.0
ANALYZE_S = 5.0
STATUS_S = 0.5  # how often a worker says how it is
THREADS = Path("/proc/self/task")
YIELDING = frozenset(GROUPS["learning"])  # what is learned may wait a little; what is on a task's way may not
NICE = 3


def options(settings: Settings, ordinal: int = 0) -> Options:
    """The shell's bounds from the settings."""
    return Options(
        bootstrap=settings.bootstrap,
        security=security(settings),
        prefix=settings.prefix,
        ordinal=ordinal,
        session_timeout_s=settings.session_timeout_ms / 1000,
        heartbeat_s=min(2.0, settings.session_timeout_ms / 5000),
        commit_interval_s=settings.commit_ms / 1000,
        gather_s=settings.gather_ms / 1000,
        gather_rows=settings.gather_rows,
        bundle_s=settings.bundle_ms / 1000,
        snapshot_min_s=min(10.0, settings.snapshot_s),
        snapshot_max_s=settings.snapshot_s,
        accept_loss=frozenset(settings.accept_loss),
    )


def chosen(names: Iterable[str]) -> list[Processor]:
    """Processors by name or group name, in the topology's order; SettingsError for an unknown one."""
    wanted: set[str] = set()
    for name in names:
        if name in GROUPS:
            wanted.update(GROUPS[name])
        elif name in PROCESSORS:
            wanted.add(name)
        else:
            known = ", ".join([*PROCESSORS, *GROUPS])
            raise SettingsError("AOS5002", f"no processor {name!r}", f"choose from {known}")
    return [processor for name, processor in PROCESSORS.items() if name in wanted]


def deployment(settings: Settings, names: Iterable[str]) -> Deployment:
    """What a worker for these processors runs."""
    processors = chosen(names)
    if any(processor.name == "supervise" for processor in processors) and not settings.secret:
        raise SettingsError(
            "AOS5003", "supervise needs the key of the tokens", "set AOS_SECRET, the same for all"
        )
    wanted = {ORDERS, *(topic for processor in processors for topic in processor.views)}
    sinks = {p.name: _sink(settings) for p in processors if p.law is Law.SINK}
    return Deployment(
        processors=processors,
        codec=WireCodec(),
        views=[VIEWS[topic] for topic in sorted(wanted)],
        sinks=sinks,
        settings=settings,
        secret=settings.secret.encode(),
        reads={p.name: reads(p, settings.tenants) for p in processors},
        spec_of=lambda name: inbox_spec(name, settings),
        replication=settings.replication,
        in_force=in_force,
        counted=shared_counts,
        grows=frozenset(
            {"aos.ledger"}
        ),  # what admit asks whether a home can be: others may have made it already
    )


def _sink(settings: Settings) -> Sink:
    from aos.infra.store import TimescaleSink  # half a second, for the one worker that stores

    async def topic_ids() -> dict[str, str]:
        async with Admin(options(settings).as_processor("store")) as admin:
            return {name: id for name, (id, _) in (await admin.ids()).items()}

    return TimescaleSink(settings.database_url, topic_ids, settings)


def reads(processor: Processor, tenants: Sequence[str]) -> tuple[str, ...]:
    """Its input topics, the tenants' own among them."""
    found: list[str] = []
    for name in processor.reads:
        found.append(name)
        if TOPICS[name].per_tenant:
            found += [tenant_topic(name, tenant) for tenant in tenants if tenant != "default"]
    return tuple(found)


def inbox_spec(name: str, settings: Settings) -> TopicSpec | None:
    """How to make a service's inbox; None for topics that must be there."""
    if not name.startswith("aos.inbox"):
        return None
    return TopicSpec(name, settings.inbox_partitions, max_bytes=8 * EDGE_BYTES_MAX)


def make_topics(settings: Settings, administrator: tuple[str, Security] | None = None) -> None:
    """Create and verify every topic of the settings' tenants; `administrator`: servers and who does it, if another."""
    specs = [spec_of(topic, settings.partitions) for topic in all_topics(settings.tenants)]
    bounds = options(settings)
    if administrator is not None:
        bounds = replace(bounds, bootstrap=administrator[0], security=administrator[1])
    asyncio.run(provision(bounds, specs, settings.replication))


def work(settings: Settings, names: Sequence[str], ordinal: int = 0, status: Path | None = None) -> int:
    """Run a worker to its end; `status`: a file that says how it is, once a second."""
    pa.set_cpu_count(1)  # steps are small: threads of libraries would only wait for each other
    bounds = options(settings, ordinal)
    if status is not None:
        bounds = replace(bounds, crumbs=str(status.with_suffix(".crumbs")))
    with threadpool_limits(1):
        return run(deployment(settings, names), bounds, _started(settings, status), worker_of)


def _started(settings: Settings, status: Path | None) -> Callable[[Worker], Awaitable[None]]:
    async def started(worker: Worker) -> None:
        await worker.ready()
        if YIELDING.issuperset(worker.metrics):
            give_way()
        duties = [_follow(worker, settings, status)]
        if "store" in worker.metrics:
            duties.append(_now_and_then(RETAIN_S, run_now, settings.database_url, settings))
            duties.append(_now_and_then(ANALYZE_S, analyze_young, settings.database_url))
        await asyncio.gather(*duties)

    return started


def give_way() -> None:
    """Let others go first from now on: not while it starts, because what is down is to come back soon."""
    for thread in THREADS.iterdir() if THREADS.is_dir() else ():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            own = int(thread.name)
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICE)


async def _follow(worker: Worker, settings: Settings, status: Path | None) -> None:
    known: set[str] = set()
    while True:
        await _make_inboxes(worker, settings, known)
        if status is not None:
            _write_status(worker, status)
        await asyncio.sleep(STATUS_S)


async def _now_and_then(every_s: float, duty: Callable[..., object], *arguments: object) -> None:
    """A duty in the database; one that is away is asked again next time."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(duty, *arguments)
        except (TransientError, psycopg.Error) as error:
            log.warning("%s was not done: %s", duty.__name__, error)


async def _make_inboxes(worker: Worker, settings: Settings, known: set[str]) -> None:
    """Make the inbox of every service that has registered: services wait for it."""
    fleet = worker.views.values.get("aos.agent-states")
    if fleet is None or "supervise" not in worker.metrics:
        return
    for service in {str(name) for name in fleet.services if name} - known:
        await worker.ensure_topic(inbox(service))
        known.add(service)


def _write_status(worker: Worker, path: Path) -> None:
    text = json.dumps(
        {
            "ready": True,
            "at": time.time(),
            "views_stale_s": round(worker.views.staleness_s(), 3),
            "processors": {name: metrics.as_dict() for name, metrics in worker.metrics.items()},
        }
    )
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:  # a full disk: who only watches us must not end us
        log.warning("the status was not written: %s", error)
