"""Faults of resources: a worker's disk, its process stopped, its group in turmoil, CPU, memory, clocks."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.chaos.faults import Injected, inject_by
from tests.chaos.looks import lines, log_size, results
from tests.chaos.machine import cpu_share, faketime, memory_of, no_cpu_group, no_faketime
from tests.chaos.stand import Stand

GROUPS = ("edge", "core", "learning", "keeping")
FULL_S = 12.0
STOPPED_S = 20.0  # twice a session
STOPPED_LONG_S = 90.0
STORM_S = 60.0
MEMBER_S = 2.0
STARVED_S = 15.0
SHARE = 0.2
SPARE_BYTES = 2 << 20
PRESSED_S = 6.0
SKEWS = ("+300", "-300", "-3600", "+0")
SKEW_S = 4.0


def disk_full(stand: Stand, random: Random) -> Injected:
    """Fault 11: a worker may not write a byte more to any file: log and status; snapshots are in the broker.

    The service must go on: whoever dies of it has made a nuisance into an outage.
    """
    began = time.time()
    worker = random.choice(stand.workers())
    pid = stand.pid(worker)
    if pid is None:
        return Injected(began, began, worker, failed=(("I10", f"{worker} did not run"),))
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    time.sleep(FULL_S)
    failed: tuple[tuple[str, str], ...] = ()
    if stand.pid(worker) == pid:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    else:
        failed = (("I10", f"{worker} ended because it could not write its files"),)
    return Injected(began, time.time(), worker, failed=failed, detail=f"RLIMIT_FSIZE 0 for {FULL_S:.0f} s")


def stopped(stand: Stand, random: Random) -> Injected:
    """Fault 12: the store is stopped beyond its session and another takes its place; woken, it must write nothing.

    Then another worker is stopped as long without a substitute.
    """
    began = time.time()
    old, mark = "worker-keeping-0", log_size(stand, "worker-keeping-0")
    stand.signal(old, signal.SIGSTOP)
    stand.up.start_worker("keeping", 1)
    time.sleep(STOPPED_S)
    stand.signal(old, signal.SIGCONT)
    woken = time.time()
    time.sleep(8.0)
    stand.up.stack.children.stop("worker-keeping-1", 30)
    fenced = lines(stand, old, r"taken over|UnknownMember|IllegalGeneration|Heartbeat session expired", mark)
    by_sql = sum("taken over" in line for line in fenced)
    other = random.choice(("worker-edge-0", "worker-core-0"))
    stand.signal(other, signal.SIGSTOP)
    time.sleep(STOPPED_S)
    stand.signal(other, signal.SIGCONT)
    healed = time.time()
    failed = () if fenced else (("I6", "the woken store never heard that it was replaced"),)
    detail = f"{old} {woken - began:.0f} s with a substitute, {by_sql} lines of fencing by SQL; {other}"
    return Injected(began, healed, f"{old}, {other}", outage=STOPPED_S, failed=failed, detail=detail)


def storm(stand: Stand, random: Random) -> Injected:
    """Fault 13: members join and leave, every few seconds for a minute; results go on."""
    began, members, before = time.time(), 0, results(stand)
    try:
        while time.time() < began + STORM_S:
            group = random.choice(GROUPS)
            name = f"worker-{group}-1"
            stand.up.start_worker(group, 1)
            members += 1
            time.sleep(MEMBER_S + random.uniform(0.0, 2.0))
            if random.random() < 0.5:
                stand.signal(name, signal.SIGKILL)
            stand.up.stack.children.stop(name, 10)
    finally:
        for group in GROUPS:
            with contextlib.suppress(KeyError):
                stand.up.stack.children.stop(f"worker-{group}-1", 10)
    healed, after = time.time(), results(stand)
    failed = () if after > before else (("I8", "no result was written during the storm"),)
    detail = f"{members} members came and went, {after - before} result messages meanwhile"
    return Injected(began, healed, "all groups", outage=10.0, failed=failed, detail=detail)


def starved(stand: Stand, random: Random) -> Injected:
    """Fault 14: all workers and agents together get a fifth of a core; nobody may be declared dead by mistake."""
    began = time.time()
    pids = [pid for name in stand.processes() if (pid := stand.pid(name)) is not None]
    with cpu_share(pids, SHARE):
        time.sleep(STARVED_S)
    healed = time.time()
    living = [stand.pid(name) for name in stand.processes()]
    failed = tuple(("I10", f"process {pid} ended of hunger") for pid in pids if pid not in living)
    return Injected(
        began,
        healed,
        "all workers",
        outage=STARVED_S,
        failed=failed,
        detail=f"{SHARE:.0%} of a core, {STARVED_S:.0f} s",
    )


def out_of_memory(stand: Stand, random: Random) -> Injected:
    """Fault 15: a worker gets no page more (RLIMIT_DATA); it may end and come back, but no message may pay for it.

    An OOM kill is a SIGKILL: fault 1. What only a limit shows is who takes MemoryError for bad bytes.
    """
    began = time.time()
    worker = random.choice(("worker-edge-0", "worker-core-0", "worker-keeping-0"))
    pid = stand.pid(worker)
    if pid is None:
        return Injected(began, began, worker, failed=(("I10", f"{worker} did not run"),))
    before = resource.prlimit(pid, resource.RLIMIT_DATA)
    limit = memory_of(pid, "VmData") + SPARE_BYTES
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit, before[1]))
    time.sleep(PRESSED_S)
    survived = stand.pid(worker) == pid
    if survived:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_DATA, before)
    detail = f"{limit >> 20} MB of data for {PRESSED_S:.0f} s; it {'lived on' if survived else 'ended and came back'}"
    return Injected(began, time.time(), worker, outage=PRESSED_S, detail=detail)


def clocks(stand: Stand, random: Random) -> Injected:
    """Fault 19: a worker's clock is five minutes ahead, five behind, then jumps back an hour, under its feet."""
    began = time.time()
    groups = random.sample(GROUPS, 2)
    with _false_clocks(stand, groups) as files:
        for skew in SKEWS:
            for file in files:
                file.write_text(f"{skew}\n")
            time.sleep(SKEW_S)
    healed = time.time()
    stand.wait_ready()
    return Injected(
        began, healed, ", ".join(groups), outage=10.0, detail=f"{', '.join(SKEWS)} s, each {SKEW_S:.0f} s"
    )


@contextmanager
def _false_clocks(stand: Stand, groups: list[str]) -> Iterator[list[Path]]:
    """Workers restarted with a clock that a file rules, and restarted again with the true one."""
    files = []
    for group in groups:
        name = f"worker-{group}-0"
        file = stand.folder / f"clock-{group}"
        file.write_text("+0\n")
        files.append(file)
        stand.environ[name] = {
            "LD_PRELOAD": str(faketime()), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        stand.up.stack.children.stop(name, 30)
        stand.up.start_worker(group)
    stand.wait_ready()
    try:
        yield files
    finally:
        for group in groups:
            name = f"worker-{group}-0"
            del stand.environ[name]
            stand.up.stack.children.stop(name, 30)
            stand.up.start_worker(group)


inject_by(11, disk_full)
inject_by(12, stopped)
inject_by(13, storm)
inject_by(14, starved, missing=no_cpu_group)
inject_by(15, out_of_memory)
inject_by(19, clocks, missing=no_faketime)
