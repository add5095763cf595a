"""``make soak``: a million tasks from a thousand connections at once, while broker, workers and agents are killed.

The verdict reads the journal, the topics from their first offset and SQL, as the judge does, but columns instead of
rows: lost (acknowledged and without a result in the topics or in SQL), duplicated (two results that differ, or two
rows in SQL), ghost (never sent). Exit code 1 if there is one of them, or a request that did not end.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import psycopg
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from aos.infra.local.host import Host
from tests.chaos.__main__ import wait_agents, wait_quiet
from tests.chaos.faults_kill import kill_one
from tests.chaos.journal import ACKNOWLEDGED, SENT
from tests.chaos.judge import percentiles
from tests.chaos.observe import disk_bytes
from tests.chaos.stand import ROOT, Stand

BETWEEN_S = (15.0, 45.0)  # between two kills
BROKER_SHARE = 0.2  # of the kills; the others hit a worker or an agent
AWAY_S = (0.5, 4.0)  # how long the broker is gone
PATIENCE_S = 120.0
RESULT = ("id", "status", "payload")


@dataclass(frozen=True)
class Kill:
    """One kill: seconds after the one before, what it hits, and the seed of its draws."""

    pause_s: float
    broker: bool
    seed: int


def plan(seed: int) -> Iterator[Kill]:
    """Kills without end; the same seed gives the same ones."""
    random = Random(f"soak {seed}")
    while True:
        yield Kill(
            round(random.uniform(*BETWEEN_S), 3), random.random() < BROKER_SHARE, random.getrandbits(32)
        )


class Killing(threading.Thread):
    """Kills by plan until told that it is enough; `failed`: what it saw go wrong."""

    def __init__(self, stand: Stand, seed: int) -> None:
        super().__init__(name="soak-killing", daemon=True)
        self._stand, self._seed = stand, seed
        self.enough = threading.Event()
        self.hit: dict[str, int] = {}
        self.back_s: list[float] = []
        self.failed: list[str] = []

    def run(self) -> None:
        for kill in plan(self._seed):
            if self.enough.wait(kill.pause_s):
                return
            random = Random(kill.seed)
            self._kill_broker(random) if kill.broker else self._kill_one(random)

    def _kill_one(self, random: Random) -> None:
        injected = kill_one(self._stand, random)
        self.failed += [what for _, what in injected.failed]
        self._count(injected.target, injected.healed, injected.kills)

    def _kill_broker(self, random: Random) -> None:
        self._stand.kill_broker()
        time.sleep(random.uniform(*AWAY_S))
        self._stand.start_broker()
        self._count("kafka", time.time(), 1)

    def _count(self, target: str, healed: float, kills: int) -> None:
        self.hit[target] = self.hit.get(target, 0) + kills
        if self._stand.wait_work():
            self.back_s.append(time.time() - healed)
        else:
            self.failed.append(f"no result within a minute after {target} was killed")


def journal_frames(path: Path) -> tuple[pl.Series, pl.Series]:
    """(every id that was sent, those acknowledged)."""
    lines = pl.read_ndjson(path, schema={"id": pl.String, "key": pl.String, "seq": pl.Int64, "rows": pl.Int64,
                                         "state": pl.String})  # fmt: skip
    sent = lines.filter(pl.col("state") == SENT)
    heard = sent.join(lines.filter(pl.col("state") == ACKNOWLEDGED).select("id"), on="id", how="semi")

    def ids(messages: pl.DataFrame) -> pl.Series:
        numbers = messages.with_columns(pl.int_ranges("seq", pl.col("seq") + pl.col("rows")).alias("number"))
        return numbers.explode("number").select(pl.format("{}-{}", "key", "number").alias("id"))["id"]

    return ids(sent), ids(heard)


def results(bootstrap: str, topic: str) -> pl.DataFrame:
    """All results on the topic, from its first offset to the end it has now."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "soak", "enable.auto.commit": False})
    frames, left = [], {}
    try:
        for partition in consumer.list_topics(topic, timeout=20).topics[topic].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=20)
            if high > low:
                left[partition] = (low, high)
        consumer.assign([TopicPartition(topic, partition, low) for partition, (low, _) in left.items()])
        while left:
            for message in consumer.consume(500, timeout=5.0):
                if message.error():
                    raise RuntimeError(f"reading {topic} failed: {message.error()}")
                with pa.ipc.open_stream(message.value()) as reader:
                    frames.append(pl.DataFrame(reader.read_all().select(RESULT)))
                if message.offset() + 1 >= left.get(message.partition(), (0, 0))[1]:
                    left.pop(message.partition(), None)
    finally:
        consumer.close()
    return pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(RESULT, pl.String))


def in_sql(database_url: str) -> pl.DataFrame:
    """(id, status) of every request in SQL, as often as it is there."""
    with psycopg.connect(database_url) as link:
        rows = link.execute("SELECT id, status FROM aos.tasks").fetchall()
    return pl.DataFrame(rows, schema={"id": pl.String, "status": pl.String}, orient="row")


def verdict(sent: pl.Series, heard: pl.Series, answers: pl.DataFrame, rows: pl.DataFrame) -> dict[str, Any]:
    """What was lost, duplicated, never sent and never ended. `answers` has `RESULT`, `rows` id and status."""
    differing = answers.unique().group_by("id").len().filter(pl.col("len") > 1)["id"]
    twice = rows.group_by("id").len().filter(pl.col("len") > 1)["id"]
    lost = heard.filter(~heard.is_in(answers["id"].implode()) | ~heard.is_in(rows["id"].implode()))
    ghosts = pl.concat([answers["id"], rows["id"]]).unique()
    ghosts = ghosts.filter(~ghosts.is_in(sent.implode()))
    return {
        "tasks": len(sent),
        "acknowledged": len(heard),
        "lost": len(lost),
        "duplicated": len(pl.concat([differing, twice]).unique()),
        "ghost": len(ghosts),
        "unfinished": len(rows.filter(pl.col("status") == "open")),
        "repeated_results": len(answers) - answers["id"].n_unique(),
        "status": dict(rows.group_by("status").len().sort("status").iter_rows()),
        "examples": [*lost[:3], *differing[:3], *twice[:3], *ghosts[:3]],
    }


def play(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One soak: the stand, the crowd, the kills, quiet, the verdict."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Stand(folder, services=("one", "two"), tenants=("default",)) as stand:
        wait_agents(stand)
        journal, began = folder / "journal-crowd.ndjson", time.monotonic()
        argv = [sys.executable, "-m", "tests.chaos.crowd", "--bootstrap", stand.settings.bootstrap]
        argv += [
            "--prefix",
            stand.settings.prefix,
            "--clients",
            str(chosen.clients),
            "--rows",
            str(chosen.rows),
        ]
        argv += ["--tasks", str(chosen.tasks), "--rate", str(chosen.rate), "--seed", str(chosen.seed)]
        stand.children.spawn(
            "load", [*argv, "--journal", str(journal)], cwd=ROOT, log_path=folder / "crowd.log"
        )
        killing = Killing(stand, chosen.seed)
        killing.start()
        code = stand.children.wait("load", chosen.tasks / chosen.rate * 4 + 600)
        killing.enough.set()
        killing.join()
        if code != 0:
            raise RuntimeError(f"the crowd ended with {code}: {(folder / 'crowd.log').read_text()[-500:]}")
        sending_s = time.monotonic() - began
        wait_quiet(stand, PATIENCE_S)
        said = verdict(
            *journal_frames(journal),
            results(stand.settings.bootstrap, stand.settings.prefix + "aos.results"),
            in_sql(stand.settings.database_url),
        )
        return {
            "seed": chosen.seed, "clients": chosen.clients, "rows_a_message": chosen.rows, "rate": chosen.rate,
            **said, "kills": sum(killing.hit.values()), "killed": killing.hit, "failed": killing.failed,
            **percentiles(killing.back_s), "sending_s": round(sending_s, 1),
            "until_quiet_s": round(time.monotonic() - began, 1), "disk_bytes": disk_bytes(folder),
        }  # fmt: skip


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=1000, help="connections at once")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second, of all together")
    parser.add_argument("--rows", type=int, default=16, help="requests a message")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--folder", default="", help="keep the run's files here")
    chosen = parser.parse_args()
    folder = Path(chosen.folder) if chosen.folder else Host.current().temporary_folder()
    try:
        said = play(chosen, folder)
    finally:
        if not chosen.folder:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(said) if chosen.json else "\n".join(f"{name}: {value}" for name, value in said.items()))
    wrong = said["lost"] or said["duplicated"] or said["ghost"] or said["unfinished"] or said["failed"]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
