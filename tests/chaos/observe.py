"""What the stand sees while it runs, for the judge: one NDJSON file of events, samples of memory and places."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

SAMPLE_S = 0.5


class Notes:
    """Append-only events, `{"at": seconds, "event": …}`; safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("a", buffering=1)

    def note(self, event: str, **what: Any) -> None:
        """Write one event with the machine's clock, unless `at` is given."""
        line = json.dumps({"at": what.pop("at", time.time()), "event": event, **what})
        with self._lock:
            self._file.write(line + "\n")

    def close(self) -> None:
        with self._lock:
            self._file.close()


def keep_all(bootstrap: str, topic: str) -> None:
    """Let the broker compact nothing of a topic while a run lasts: what it drops the judge cannot see.

    When a killed worker worked again is told by its first message afterwards, and later ones would replace it."""
    day_ms = str(24 * 3600 * 1000)
    lags = [
        ConfigEntry(f"{which}.compaction.lag.ms", day_ms, incremental_operation=AlterConfigOpType.SET)
        for which in ("max", "min")
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=lags)
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.incremental_alter_configs([resource])[resource].result(30)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def command_lines() -> list[str]:
    """Every process of the machine as its arguments, as `ps` shows them."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                found.append(
                    Path(f"/proc/{entry}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode("utf-8", "replace")
                )
    return [line for line in found if line]


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below a folder take; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total


class Sampler(threading.Thread):
    """Notes memory of every process and the store's places twice a second, the process list now and then."""

    def __init__(self, notes: Notes, pids: Callable[[], dict[str, int]], database_url: str) -> None:
        super().__init__(name="chaos-sampler", daemon=True)
        self._notes, self._pids, self._url = notes, pids, database_url
        self._over = threading.Event()

    def run(self) -> None:
        turn = 0
        while not self._over.wait(SAMPLE_S):
            self._notes.note("rss", bytes={name: rss_bytes(pid) for name, pid in self._pids().items()})
            self._places()
            if turn % 20 == 0:
                self._notes.note("processes", lines=command_lines())
            turn += 1

    def _places(self) -> None:
        """Where the store stands; a database that is away is noted as away."""
        query = "SELECT topic, topic_id::text, partition, next_offset FROM aos_data.place"
        try:
            with psycopg.connect(self._url, connect_timeout=2, autocommit=True) as link:
                rows = link.execute(query).fetchall()
        except psycopg.Error as error:
            self._notes.note("places-unknown", why=type(error).__name__)
            return
        self._notes.note("places", places=[list(row) for row in rows])

    def close(self) -> None:
        self._over.set()
        self.join(10)
