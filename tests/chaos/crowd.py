"""The clients of a soak, a program of its own: a thousand connections at once, each send in the journal first.

Each client is an idempotent producer with a connection of its own and sends messages of `rows` requests in Arrow.
A message is one line of the journal (`Journal` says when it is on disk); `key` names the client, `id` is
`<client>-<from>` and stands for the ids `<client>-<number>` of `rows` numbers from there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.chaos.journal import ACKNOWLEDGED, Journal
from tests.chaos.load import encoded

TICK_S = 0.05
OPEN_TOGETHER = 50  # connections that are opened at a time
SETTLE_S = 180.0
OWES_MAX = 4  # messages of one client that are not acknowledged; beyond them it is another's turn


class Client:
    """One connection; `owes` counts its messages without an answer."""

    def __init__(self, number: int, chosen: argparse.Namespace, journal: Journal) -> None:
        self.name, self.seq, self.owes = f"c{number}", 0, 0
        self._journal, self._rows = journal, chosen.rows
        self._topic = chosen.prefix + "aos.requests"
        self._producer = AIOKafkaProducer(
            bootstrap_servers=chosen.bootstrap, client_id=f"soak-{number}", acks="all", enable_idempotence=True,
            request_timeout_ms=int(SETTLE_S * 1000), metadata_max_age_ms=600_000, linger_ms=5,
        )  # fmt: skip

    async def open(self) -> None:
        await self._producer.start()

    async def close(self) -> None:
        await self._producer.stop()

    def draw(self) -> tuple[dict[str, Any], bytes]:
        """The next message: its line in the journal, its bytes."""
        ids = [f"{self.name}-{self.seq + place}" for place in range(self._rows)]
        rows = [{"id": id, "text": f"task {id}", "require": ["shout"], "task_kind": "shout"} for id in ids]
        line = {"tenant": "default", "id": ids[0], "key": self.name, "seq": self.seq, "rows": self._rows}
        self.seq += self._rows
        self.owes += 1
        return line, encoded(rows)

    async def send(self, line: dict[str, Any], value: bytes) -> None:
        """Send one message that the journal has; without an answer it stays unknown."""
        try:
            await self._producer.send_and_wait(self._topic, value)
        except KafkaError as error:
            print(f"{line['id']}: {error!r}", file=sys.stderr)
        else:
            self._journal.settled(line, ACKNOWLEDGED)
        finally:
            self.owes -= 1


async def play(chosen: argparse.Namespace) -> None:
    """Open all connections, then send at a steady rate, each time from clients the seed draws."""
    journal, random = Journal(Path(chosen.journal)), Random(f"{chosen.seed}/crowd")
    clients = [Client(number, chosen, journal) for number in range(chosen.clients)]
    for first in range(0, len(clients), OPEN_TOGETHER):
        await asyncio.gather(*(client.open() for client in clients[first : first + OPEN_TOGETHER]))
    Path(chosen.journal).with_suffix(".open").touch()
    sent, sending, began = 0, set[asyncio.Task[None]](), time.monotonic()
    while sent < chosen.tasks:
        due = min((time.monotonic() - began) * chosen.rate, chosen.tasks) - sent
        free = [client for client in clients if client.owes < OWES_MAX]
        count = min(int(due // chosen.rows) + 1, len(free), -(-(chosen.tasks - sent) // chosen.rows))
        drawn = [(client, *client.draw()) for client in random.sample(free, count)]
        journal.sent(line for _, line, _ in drawn)
        for client, line, value in drawn:
            task = asyncio.create_task(client.send(line, value))
            sending.add(task)
            task.add_done_callback(sending.discard)
        sent += len(drawn) * chosen.rows
        await asyncio.sleep(TICK_S)
    if sending:
        await asyncio.wait(sending, timeout=SETTLE_S)
    unsettled = len(sending)
    await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
    journal.close()
    print(json.dumps({"sent": sent, "unsettled": unsettled, "seconds": round(time.monotonic() - began, 1)}))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.crowd", description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--rows", type=int, default=16, help="requests a message")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--journal", required=True)
    asyncio.run(play(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
