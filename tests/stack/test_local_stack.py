"""The real broker and the real database: they come up, survive being killed, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from aos.infra.local import LocalStack

EIGHT_MIB_NEARLY = 8 * 1024 * 1024 - 1024


async def write_and_read(bootstrap: str, topic: str, value: bytes) -> bytes:
    """Make the topic, produce one message with acks=all, read it back."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    limit = 16 << 20
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", max_request_size=limit) as producer:
        await producer.send_and_wait(topic, value)
    return await read_one(bootstrap, topic)


async def read_one(bootstrap: str, topic: str) -> bytes:
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", max_partition_fetch_bytes=16 << 20
    )
    async with consumer:
        message = await asyncio.wait_for(consumer.getone(), 30)
        assert message.timestamp_type == 1  # LogAppendTime
        assert message.value is not None
        return bytes(message.value)


def below(pid: int) -> list[int]:
    """Every process below `pid`."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *below(int(child))]
    return found


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that still run (a zombie does not)."""
    found = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
        except OSError:
            continue
    return found


async def test_broker_takes_a_message_of_eight_mib(bootstrap: str, topic_prefix: str) -> None:
    value = os.urandom(EIGHT_MIB_NEARLY)
    assert await write_and_read(bootstrap, f"{topic_prefix}big", value) == value


def test_database_has_the_extension_and_keeps_what_it_said(database_url: str) -> None:
    with psycopg.connect(database_url) as link:
        settings = {
            name: link.execute("SELECT current_setting(%s)", [name]).fetchone()
            for name in (
                "fsync",
                "synchronous_commit",
                "jit",
                "listen_addresses",
                "timescaledb.telemetry_level",
            )
        }
        link.execute("CREATE TABLE samples (at timestamptz NOT NULL, value float8)")
        link.execute("SELECT create_hypertable('samples', 'at')")
    assert settings["fsync"] == ("on",)
    assert settings["synchronous_commit"] == ("on",)
    if not os.environ.get("AOS_TEST_DATABASE_URL"):
        assert settings["jit"] == ("off",)
        assert settings["listen_addresses"] == ("127.0.0.1",)
        assert settings["timescaledb.telemetry_level"] == ("off",)


def test_killed_parts_come_again_on_their_port_and_data(
    own_stack: LocalStack, measured: Callable[[str], None]
) -> None:
    measured(
        "local stack, second start: " + ", ".join(f"{k} {v:.1f} s" for k, v in own_stack.start_s.items())
    )
    asyncio.run(write_and_read(own_stack.bootstrap, "kept", b"value"))
    with psycopg.connect(own_stack.database_url) as link:
        link.execute("CREATE TABLE kept (value text)")
        link.execute("INSERT INTO kept VALUES ('value')")
    for part, kill, start in (
        ("broker", own_stack.kill_broker, own_stack.start_broker),
        ("database", own_stack.kill_database, own_stack.start_database),
    ):
        kill()
        began = time.monotonic()
        start()
        measured(f"{part} after SIGKILL, until it answers: {time.monotonic() - began:.1f} s")
    assert asyncio.run(read_one(own_stack.bootstrap, "kept")) == b"value"
    with psycopg.connect(own_stack.database_url) as link:
        assert link.execute("SELECT value FROM kept").fetchall() == [("value",)]


def test_a_kept_data_folder_is_found_again_on_other_ports(own_stack: LocalStack) -> None:
    """`own_stack` lends its place: a folder that the database's user may enter, wherever pytest's own are."""
    folder = own_stack.data_dir / "another"
    for expected in (0, 1):
        with LocalStack(folder) as stack, psycopg.connect(stack.database_url) as link:
            link.execute("CREATE TABLE IF NOT EXISTS runs (number int)")
            assert link.execute("SELECT count(*) FROM runs").fetchone() == (expected,)
            link.execute("INSERT INTO runs VALUES (1)")
            link.commit()
            if expected == 0:
                asyncio.run(write_and_read(stack.bootstrap, "kept", b"value"))
            assert asyncio.run(read_one(stack.bootstrap, "kept")) == b"value"


@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name
)
@pytest.mark.parametrize("moment", ["up", "starting"])
def test_nothing_is_left_behind(stack: LocalStack, signum: signal.Signals, moment: str) -> None:
    """The command is ended while it starts and when it is up; its processes and private folder are gone."""
    command = subprocess.Popen(
        [sys.executable, "-m", "aos.infra.local"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert command.stdout is not None
    with command.stdout:
        if moment == "up":
            assert json.loads(command.stdout.readline())["bootstrap"]
        else:
            wait_for(lambda: len(below(command.pid)) >= 3)
    processes = below(command.pid)
    folders = {Path(os.readlink(f"/proc/{pid}/cwd")) for pid in alive(processes)} - {Path("/")}
    assert folders
    command.send_signal(signum)
    command.wait(30)
    wait_for(lambda: alive(processes) == [])
    wait_for(lambda: not any(folder.exists() for folder in folders))


def wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait until `condition()`; a failure names it by its line."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
