"""Two workers that are wrong in the usual ways; the checker of the fold must refuse both.

``naive``: a plain Faust agent with default acks, state in memory, outputs sent with `topic.send`.
``timer``: the state is snapshotted by a timer and sought to at an assignment, nothing is muted, nothing waits
for the outputs (the first version of `spikes/snapshot_seek_app.py`, with outputs).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import faust
import google_crc32c
import toys
from faust.transport.drivers import aiokafka as drv

from aos.streams.processor import Batch, Views
from aos.streams.shell.options import Options
from aos.streams.shell.producer import Producer
from aos.streams.shell.reader import Reader
from aos.streams.shell.snapshots import Manifest, Snapshot, Snapshots, pack
from aos.streams.shell.topics import Admin

TIMER_S = 0.01
DELAY_S = 0.05
CODEC = toys.ToyCodec()

given = json.loads(sys.argv[1])
options = Options(**given["options"])
folder = Path(given["folder"])
kind = given["processors"][0]
states: dict[int, dict[str, Any]] = {}
clocks: dict[int, int] = {}
nexts: dict[int, int] = {}


def file(partition: int) -> Path:
    return folder / f"control-{partition}.json"


class SeekingConsumer(drv.Consumer):
    async def seek_to_committed(self) -> Any:
        offsets = dict(await super().seek_to_committed())
        for tp in offsets:
            if file(tp.partition).exists():
                saved = json.loads(file(tp.partition).read_text())
                state = saved["state"]
                state["seen"] = {int(k): v for k, v in state["seen"].items()}
                states[tp.partition], clocks[tp.partition] = state, saved["now"]
                offsets[tp] = nexts[tp.partition] = saved["next"]
        await self._thread.seek_wait({tp: o for tp, o in offsets.items() if o is not None and o >= 0})
        return offsets


class SeekingTransport(drv.Transport):
    Consumer = SeekingConsumer


app = faust.App(
    f"{options.prefix}aos.toy-fold", broker=f"kafka://{options.bootstrap}", value_serializer="raw",
    key_serializer="raw", store="memory://", topic_allow_declare=False, topic_disable_leader=True,
    consumer_auto_offset_reset="earliest", broker_commit_interval=0.2, broker_session_timeout=6,
    broker_heartbeat_interval=1, consumer_group_instance_id=f"{options.prefix}{options.ordinal}",
    web_enabled=False, autodiscover=False, producer_linger=DELAY_S if kind == "naive" else 0,
)  # fmt: skip
app._create_directories = lambda: None  # type: ignore[method-assign]  # it keeps no tables: leave no folders
if kind == "timer":
    app.transport = SeekingTransport(app.conf.broker_consumer, app)
source = app.topic(options.prefix + "toy.in", value_type=bytes, value_serializer="raw")
target = app.topic(options.prefix + "toy.out", value_type=bytes, value_serializer="raw")


@app.agent(source)
async def process(stream: Any) -> None:
    async for event in stream.events():
        p, offset = event.message.partition, event.message.offset
        if offset < nexts.get(p, 0):
            continue
        state = states.setdefault(p, toys.fold_initial(p))
        now = clocks[p] = max(clocks.get(p, 0), int(event.message.timestamp * 1000) * 1000)
        rows = CODEC.decode("toy.in", event.value, {})
        result = toys.fold_step(state, Batch("toy.in", p, offset, rows), now, Views(), 0)
        nexts[p] = offset + 1
        for output in result.outputs:
            value, _ = CODEC.encode(output.topic, output.rows)
            if kind == "timer":
                await asyncio.sleep(DELAY_S)
                await (await target.send(value=value, partition=p))
            else:
                await target.send(value=value, partition=p)


async def save() -> None:
    while True:
        await asyncio.sleep(TIMER_S)
        for p, state in states.items():
            fresh = file(p).with_suffix(".new")
            fresh.write_text(json.dumps({"state": state, "now": clocks[p], "next": nexts[p]}))
            os.replace(fresh, file(p))


async def publish() -> None:
    """Put the final states where the checker looks."""
    producer, reader = Producer(options), Reader(options)
    await producer.start()
    async with Admin(options) as admin:
        ids = {name: id for name, (id, _) in (await admin.ids()).items()}
    for p, state in states.items():
        body, parts = pack(toys.fold_dump(state))
        manifest = Manifest(
            "toy-fold", p, 0, 1, {"toy.in": nexts[p]}, {"toy.in": ids["toy.in"]}, clocks[p], None, 0, parts,
            len(body), google_crc32c.value(body),
        )  # fmt: skip
        await Snapshots(CODEC, producer, reader).save(Snapshot(manifest, body))
    await producer.stop()


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(15, stop.set)
    await app.start()
    print("ready", flush=True)
    saving = asyncio.create_task(save()) if kind == "timer" else None
    await stop.wait()
    if saving is not None:
        saving.cancel()
    await app.stop()
    await publish()


print("warm", flush=True)
if sys.stdin.readline().strip() == "go":
    asyncio.run(main())
    os._exit(0)
