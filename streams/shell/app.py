"""The Faust app of one processor: how it joins its group, and the one agent that feeds the processor's port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import faust

from aos.streams.processor import Processor
from aos.streams.shell.consumer import NoTables, SafeTransport
from aos.streams.shell.login import credentials
from aos.streams.shell.options import Options


class App(faust.App):
    """A processor's Faust app: knows its port and options, commits and reads through `SafeConsumer`."""

    port: Any = None
    options: Options

    def _create_directories(self) -> None:
        """Faust's own makes a data folder an app at each start and leaves it; ours have no tables to put there."""


def make_app(processor: Processor, counts: Mapping[str, int], options: Options) -> App:
    """The Faust app of one processor, its one agent feeding the port. `counts`: the partitions of its input topics."""
    name = f"{options.prefix}aos.{processor.name}"
    app = App(
        id=name,
        broker=[f"kafka://{server}" for server in options.bootstrap.split(",")],
        broker_credentials=credentials(options),
        version=1,
        autodiscover=False,
        key_serializer="raw",
        value_serializer="raw",
        processing_guarantee="at_least_once",
        cython_optimizations=True,
        store="memory://",
        table_standby_replicas=1,  # keeps Faust's co-partitioning assignor
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=member_of(name, options.ordinal, counts),
        consumer_max_fetch_size=options.partition_fetch_bytes,
        consumer_metadata_max_age_ms=30_000,
        broker_max_poll_records=options.fetch_records,
        stream_buffer_maxsize=4096,  # bundles; bounded by bytes in `Port.wants`
        broker_commit_interval=options.commit_interval_s,
        broker_commit_every=1_000_000,
        broker_session_timeout=options.session_timeout_s,
        broker_heartbeat_interval=options.heartbeat_s,
        broker_request_timeout=60,
        broker_rebalance_timeout=options.rebalance_timeout_s,
        broker_max_poll_interval=900,
        broker_check_crcs=True,
        stream_wait_empty=True,
        stream_publish_on_commit=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        worker_redirect_stdouts=False,
        TableManager=NoTables,
        datadir="/nonexistent/aos-faust",  # never made, see `App`; without it Faust names one in the working folder
    )
    app.options = options
    app.transport = SafeTransport(app.conf.broker_consumer, app)
    channel = app.topic(*[options.prefix + t for t in counts], value_type=bytes, value_serializer="raw")

    async def process(stream: Any) -> None:
        # No acks by the stream: it would ack what it skips or what fails. The loop reports what is done.
        async for event in stream.noack().events():
            app.port.feed(event.value)

    app.agent(channel, name=f"{name}.process", concurrency=1)(process)
    return app


def member_of(group: str, ordinal: int, counts: Mapping[str, int]) -> str:
    """The name under which a group knows a member that starts again, so that it gets its partitions back at once.

    With other partitions than before it is another member: the old one's share, which the group would hand back
    unchanged, lacks what was added; it is dealt anew when the old one's session ends.
    """
    shape = crc32(",".join(f"{topic}={count}" for topic, count in sorted(counts.items())).encode())
    return f"{group}-{ordinal}-{shape:08x}"
