"""Runs the systems in turn on one broker and reads from the output topics how fast each was and whether it was right.

The rate is taken from the broker's append times of the outputs, from the first tenth of the rows to the last row: what
a system does before its first output, starting up among it, does not count.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from aos.infra.local import LocalStack
from aos.streams.shell.options import Options
from aos.streams.shell.topics import Admin, TopicSpec, provision
from benchmarks.harness import Figure, say
from benchmarks.processor.rows import messages, numbers, transform
from benchmarks.processor.systems import SETTINGS, SYSTEMS, Job
from benchmarks.usage import Sample, between, sample

ROOT = Path(__file__).resolve().parent.parent.parent
WARM_SHARE = 0.1
LIMIT_S = 180.0
ALONE_S = 1.0
# the broker makes its offsets topic, or elects who keeps the group
NO_GROUP_YET = (
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError._WAIT_COORD,
    KafkaError._TIMED_OUT,
)
SHAPES = (1, 256)  # rows a message


@dataclass(frozen=True)
class Run:
    """What one run of one system gave."""

    rows_per_s: float
    cores: float
    kafka_cores: float
    rows_a_message_out: float
    lost: int
    duplicated: int


def measure(
    quick: bool, bootstrap: str | None, only: Sequence[str] = (), repeats: int | None = None
) -> Iterator[Figure]:
    """Every shape, every system, `repeats` times in turn."""
    repeats = repeats or (1 if quick else 3)
    totals = {1: 4_000, 256: 51_200} if quick else {1: 60_000, 256: 384_000}
    with LocalStack(bootstrap=bootstrap, database_url="none: this question needs no database") as stack:
        for rows in SHAPES:
            with topics(stack.bootstrap, rows, totals[rows]) as prefix:
                runs: dict[str, list[Run]] = {name: [] for name in only or SYSTEMS}
                for repeat in range(repeats):
                    for name in runs:
                        runs[name].append(one(stack, prefix, name, rows, totals[rows], repeat))
                        say(f"  {rows:4d} rows a message  {name:16s} {_told(runs[name][-1])}")
                for name, found in runs.items():
                    yield from figures(name, rows, totals[rows], found)
                yield arrow_alone(rows, repeats)


def _told(run: Run) -> str:
    bad = f"  LOST {run.lost} DUPLICATED {run.duplicated}" if run.lost or run.duplicated else ""
    return f"{run.rows_per_s:10,.0f} rows/s  {run.cores:.2f} cores, broker {run.kafka_cores:.2f}{bad}"


def arrow_alone(rows: int, repeats: int) -> Figure:
    """The speed of light: the same Arrow work on messages in memory, nothing around it, one core."""
    prepared = [value for value, _ in messages(20 * rows, rows)]
    rates = []
    for _ in range(repeats):
        done, began = 0, time.process_time()
        while time.process_time() - began < ALONE_S:
            for value in prepared:
                transform(value)
            done += 20 * rows
        rates.append(done / (time.process_time() - began))
    say(f"  {rows:4d} rows a message  Arrow alone      {float(np.median(rates)):10,.0f} rows/s/core")
    return Figure(f"processor/{rows}-rows/arrow-alone", "throughput a core", "rows/s/core", rates, rows, 1)


def figures(name: str, rows: int, total: int, runs: list[Run]) -> Iterator[Figure]:
    """Rows a second, and rows a second a core."""
    detail = {
        "system": name, "rows": total, "settings": SETTINGS[name],
        "cores": round(float(np.median([run.cores for run in runs])), 3),
        "kafka_cores": round(float(np.median([run.kafka_cores for run in runs])), 3),
        "rows_a_message_out": round(float(np.median([run.rows_a_message_out for run in runs])), 1),
        "lost": sum(run.lost for run in runs), "duplicated": sum(run.duplicated for run in runs),
    }  # fmt: skip
    workload = f"processor/{rows}-rows/{name}"
    yield Figure(workload, "throughput", "rows/s", [run.rows_per_s for run in runs], rows, 1, detail)
    a_core = [run.rows_per_s / max(run.cores, 1e-9) for run in runs]
    yield Figure(workload, "throughput a core", "rows/s/core", a_core, rows, 1, detail)


@contextmanager
def topics(bootstrap: str, rows: int, total: int) -> Iterator[str]:
    """The input topic, loaded; yields the prefix. All topics of the prefix are deleted at the end."""
    prefix = f"bench{time.time_ns() // 1_000_000}."
    options = Options(bootstrap, prefix)
    asyncio.run(provision(options, [TopicSpec("bench.rows"), TopicSpec("aos.dead-letters")]))
    try:
        load(bootstrap, prefix + "bench.rows", rows, total)
        yield prefix
    finally:
        asyncio.run(_delete_all(options))


def load(bootstrap: str, topic: str, rows: int, total: int) -> None:
    """Write the input messages, acknowledged."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "linger.ms": 5,
            "message.max.bytes": 8 << 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    for value, headers in messages(total, rows):
        while True:
            try:
                producer.produce(topic, value, headers=list(headers.items()))
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    assert producer.flush(120) == 0


async def _delete_all(options: Options) -> None:
    async with Admin(options) as admin:
        await admin.delete(await admin.ids())


def one(stack: LocalStack, prefix: str, name: str, rows: int, total: int, repeat: int) -> Run:
    """One system through the whole input topic."""
    label = f"bench-{name}-{repeat}"
    job = Job(stack.bootstrap, prefix, label, "bench.rows", f"bench.out.{name}-{repeat}", rows)
    asyncio.run(provision(Options(job.bootstrap, prefix), [TopicSpec(job.target)]))
    log = stack.data_dir / f"{label}.log"
    argv = [sys.executable, "-m", "benchmarks.processor.systems", name, json.dumps(asdict(job))]
    pid = stack.children.spawn(label, argv, cwd=ROOT, log_path=log)
    pids = {"system": pid}
    kafka = stack.children.pid("kafka")
    if kafka is not None:
        pids["kafka"] = kafka
    try:
        samples = follow(stack, job, pids, -(-total // rows), log)
    finally:
        stack.children.stop(label, 5.0)
    values = read_all(job.bootstrap, prefix + job.target)
    asyncio.run(_delete(Options(job.bootstrap, prefix), job.target))
    return verdict(values, samples, total)


async def _delete(options: Options, name: str) -> None:
    async with Admin(options) as admin:
        await admin.delete([name])


def follow(
    stack: LocalStack, job: Job, pids: dict[str, int], messages_count: int, log: Path
) -> list[tuple[int, Sample]]:
    """(end of the output topic, CPU so far) ten times a second until the group has committed all its input."""
    # A consumer that never joins: AdminClient.list_consumer_group_offsets crashes librdkafka 2.12 on a fresh broker.
    watcher = Consumer({"bootstrap.servers": job.bootstrap, "group.id": job.group})
    partition = TopicPartition(job.prefix + job.target, 0)
    source = TopicPartition(job.prefix + job.source, 0)
    samples = []
    ends = time.monotonic() + LIMIT_S
    try:
        while True:
            samples.append((watcher.get_watermark_offsets(partition, timeout=10)[1], sample(pids)))
            if committed(watcher, source) >= messages_count:
                return samples
            if stack.children.pid(job.name) is None or time.monotonic() > ends:
                raise RuntimeError(f"{job.name} did not finish; its log ends with:\n{_tail(log)}")
            time.sleep(0.1)
    finally:
        watcher.close()


def committed(asker: Any, partition: Any) -> int:
    """The offset that the asker's group has committed; -1 when there is none yet."""
    try:
        (found,) = asker.committed([partition], timeout=5)
    except KafkaException as error:
        if error.args[0].code() in NO_GROUP_YET:
            return -1
        raise
    return int(found.offset)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"


def read_all(bootstrap: str, topic: str) -> list[tuple[int, np.ndarray]]:
    """(append time in ms, row numbers) of every message of a topic with one partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"read-{time.time_ns()}",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 8 << 20,
        }
    )
    partition = TopicPartition(topic, 0, 0)
    _, end = consumer.get_watermark_offsets(partition, timeout=10)
    consumer.assign([partition])
    found: list[tuple[int, np.ndarray]] = []
    while len(found) < end:
        for message in consumer.consume(500, 1.0):
            assert message.error() is None, message.error()
            found.append((message.timestamp()[1], numbers(message.value())))
    consumer.close()
    return found


def verdict(values: list[tuple[int, np.ndarray]], samples: list[tuple[int, Sample]], total: int) -> Run:
    """Rate and cores after the warm-up, and whether every row came out."""
    times = np.array([at for at, _ in values], dtype=float)
    counts = np.array([len(ids) for _, ids in values])
    ids = np.concatenate([ids for _, ids in values])
    cumulated = np.cumsum(counts)
    warm = int(np.searchsorted(cumulated, WARM_SHARE * cumulated[-1]))
    seconds = max(times[-1] - times[warm], 1.0) / 1000
    rate = float(cumulated[-1] - cumulated[warm]) / seconds
    lasts = len(values)
    busy = [s for offset, s in samples if 0 < offset < lasts]
    cores = between(busy[0], busy[-1]) if len(busy) > 1 else between(samples[0][1], samples[-1][1])
    distinct = len(np.unique(ids))
    return Run(
        rate,
        cores.process["system"],
        cores.process.get("kafka", float("nan")),
        len(ids) / len(values),
        total - distinct,
        len(ids) - distinct,
    )
