"""The first negative control: a naive Faust app in AOS's place. The judge must report that it loses requests.

It is what one writes first: an agent with the default acknowledgement and four at once, an exception now and then, the
answer sent with `topic.send`. It takes a worker's arguments, so that the stand starts and kills it like a worker: that
of the group `edge` is the app, the others are there and do nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import faust
import pyarrow as pa

from aos.infra.settings import load

RESULT = pa.schema([
    ("tenant", pa.string()), ("request_id", pa.binary(16)), ("round", pa.int16()), ("id", pa.string()),
    ("status", pa.string()), ("payload", pa.binary()),
])  # fmt: skip
FAILS_EVERY = 100


def requests_of(value: bytes) -> list[dict[str, Any]]:
    """What one message asks."""
    if value[:1] == b"{":
        return [json.loads(value)]
    with pa.ipc.open_stream(value) as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()
    return rows


def answer(tenant: str, request: dict[str, Any]) -> bytes:
    """A result as one Arrow stream."""
    from hashlib import blake2b

    id = str(request["id"])
    steps = request.get("steps")
    text = "+".join(step["text"] for step in steps if step.get("text")) if steps else str(request["text"])
    row = {"tenant": tenant, "request_id": blake2b(f"{tenant}/{id}".encode(), digest_size=16).digest(),
           "round": 0, "id": id, "status": "ok", "payload": text.upper().encode()}  # fmt: skip
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, RESULT) as writer:
        writer.write_table(pa.Table.from_pylist([row], RESULT))
    return bytes(sink.getvalue())


def app() -> Any:
    """The Faust app: defaults, but for what it needs to find the broker."""
    settings = load()
    made = faust.App(
        f"{settings.prefix}aos.encode", broker=[f"kafka://{one}" for one in settings.bootstrap.split(",")],
        value_serializer="raw", key_serializer="raw", store="memory://", web_enabled=False, autodiscover=False,
        topic_allow_declare=False, topic_disable_leader=True, consumer_auto_offset_reset="earliest",
        broker_session_timeout=10, broker_heartbeat_interval=2, datadir="/tmp/aos-chaos-naive",
    )  # fmt: skip
    topics = {
        one: f"{settings.prefix}aos.requests{'' if one == 'default' else '.' + one}"
        for one in settings.tenants
    }
    seen = 0
    for tenant, topic in topics.items():
        results = made.topic(topic.replace("aos.requests", "aos.results"), value_serializer="raw")

        async def process(stream: Any, tenant: str = tenant, results: Any = results) -> None:
            nonlocal seen
            async for value in stream:
                seen += 1
                if seen % FAILS_EVERY == 0:
                    raise RuntimeError("now and then something fails")
                await asyncio.sleep(0.005)  # some work
                for request in requests_of(value):
                    await results.send(value=answer(tenant, request), partition=0)

        channel = made.topic(topic, value_type=bytes, value_serializer="raw")
        made.agent(channel, name=f"naive.{tenant}", concurrency=4)(process)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.naive", description=__doc__)
    parser.add_argument("--ordinal", type=int, default=0)
    parser.add_argument("--processors", required=True)
    parser.add_argument("--status-file", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.status_file.write_text(json.dumps({"ready": True, "at": time.time()}))
    if "encode" not in chosen.processors.split(","):
        signal.pause()
        return 0
    faust.Worker(app(), loglevel="warning").execute_from_commandline()
    return 0


if __name__ == "__main__":
    sys.exit(main())
