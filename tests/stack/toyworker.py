"""A worker of toy processors as a program: imports, waits for a line on stdin (so that a spare is warm), runs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from aiokafka import TopicPartition
from toys import DEADLY, PROCESSORS, SLOW, ToyCodec

from aos.streams.processor import Batch, Processor, Raw, Step, Views
from aos.streams.shell.codec import ORDERS
from aos.streams.shell.options import Options
from aos.streams.shell.sinks import Portion, SinkAway
from aos.streams.shell.worker import Deployment, Worker, run
from aos.streams.views import VIEWS


class FileSink:
    """A store in one file: rows and offsets in one write; away while a file named ``away`` exists."""

    def __init__(self, folder: Path) -> None:
        self._file, self._flag = folder / "sink.json", folder / "away"

    def _read(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {"offsets": {}, "rows": []}

    async def open(self, partitions: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        if self._flag.exists():
            raise SinkAway("the flag is up")
        known = self._read()["offsets"]
        return {(t, p): known[f"{t}/{p}"] for t, p in partitions if f"{t}/{p}" in known}

    async def write(self, batches: Sequence[Portion]) -> None:
        if self._flag.exists():
            raise SinkAway("the flag is up")
        store = self._read()
        for one in batches:
            store["rows"] += id_column(one.rows)
            store["offsets"][f"{one.topic}/{one.partition}"] = one.offset + 1
        await asyncio.sleep(0.02)
        if self._flag.exists():
            raise SinkAway("lost in mid-transaction")
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(store))
        os.replace(fresh, self._file)


def id_column(rows: pa.RecordBatch) -> list[int]:
    found: list[int] = rows.column(0).to_pylist() if rows.num_columns else []
    return found


def ids_of(raw: Raw) -> list[int]:
    return id_column(ToyCodec().decode(raw.topic, raw.value, raw.headers))


def watched(processor: Processor, progress: int, slow_s: float) -> Processor:
    """The processor, noting the highest offset it stepped where the test can see it after a SIGKILL."""
    highest: dict[tuple[str, int], int] = {}

    def step(state: Any, batch: Batch, now: int, views: Views, seed: int) -> Step[Any]:
        if any(DEADLY in ids for ids in (id_column(batch.rows), *map(ids_of, batch.raws))):
            os.kill(os.getpid(), signal.SIGKILL)
        result = processor.step(state, batch, now, views, seed)
        if not batch.tick:
            last = batch.raws[-1].offset if batch.raws else batch.offset
            highest[(batch.topic, batch.partition)] = last
            text = json.dumps([[t, p, o] for (t, p), o in highest.items()])
            os.pwrite(progress, text.ljust(1000).encode(), 0)
        if slow_s and batch.rows.num_rows and SLOW in batch.rows.column(0).to_pylist():
            import time

            time.sleep(slow_s)  # a step that takes long, in the loop's thread like a real one
        return result

    return dataclasses.replace(processor, step=step)


def show(worker: Worker) -> None:
    """On SIGUSR1: where everything stands, for whoever looks for a stall."""
    for app, port in zip(worker.apps, worker.ports, strict=True):
        consumer: Any = app.consumer
        real = consumer._thread._consumer
        print("active", consumer._active_partitions, consumer._buffered_partitions, file=sys.stderr)
        for loop in getattr(port, "loops", {}).values():
            print("state", loop.next_due, loop.stopping, loop._wake.is_set(), file=sys.stderr)
            for item in loop.inputs.values():
                tp = TopicPartition(*item.tp)
                state = real._subscription._assigned_state(tp)
                flight = consumer.flights.get(item.tp)
                print(
                    item, flight and (flight._spans, flight.position()), state.paused, state._position,
                    state.highwater, tp in real._fetcher._records, file=sys.stderr,
                )  # fmt: skip
        for task in asyncio.all_tasks():
            task.print_stack(file=sys.stderr)


def main() -> int:
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    progress = os.open(folder / f"progress-{given['options']['ordinal']}", os.O_RDWR | os.O_CREAT)
    deployment = Deployment(
        [watched(PROCESSORS[name], progress, given.get("slow_s", 0.0)) for name in given["processors"]],
        ToyCodec(),
        views=[VIEWS[ORDERS]],
        sinks={"toy-store": FileSink(folder)},
    )
    print("warm", flush=True)
    if sys.stdin.readline().strip() != "go":
        return 0

    async def deafen(worker: Worker) -> None:
        """From now on nothing is fetched, and nobody says so: what a consumer that is silently dead looks like."""
        await asyncio.sleep(given["deaf_after_s"])
        for app in worker.apps:
            app.consumer._getmany = lambda **_: asyncio.sleep(3600)  # type: ignore[union-attr]

    async def started(worker: Worker) -> None:
        await worker.ready()
        deaf = asyncio.create_task(deafen(worker)) if "deaf_after_s" in given else None
        print("ready", flush=True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, show, worker)
        while True:
            await asyncio.sleep(0.5)
            shown = {name: metrics.as_dict() for name, metrics in worker.metrics.items()}
            (folder / f"metrics-{given['options']['ordinal']}").write_text(json.dumps(shown))
            assert deaf is None or not deaf.done() or not deaf.exception()

    return run(deployment, Options(**given["options"]), started)


if __name__ == "__main__":
    sys.exit(main())
