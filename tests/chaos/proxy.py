"""A toxic TCP proxy: stands before the broker and the database and spoils what passes, steerable while it runs.

Toxics are those of toxiproxy: latency and jitter, bandwidth, slices, stall (packets that do not come: what is held
passes once healed), swallow (half-open: the bytes are gone, and the link with them once healed), a cut after so many
bytes, reset, down. A toxic may hit one way only (`to` the server, `from` it).

`tests.chaos.proxy_control` runs and steers it. What TCP itself hides is not imitated: a stalled link still accepts
connections, as a host does that is lost after that.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LOOPBACK = "127.0.0.1"
CHUNK = 1 << 16
HELD_BYTES_MAX = 8 << 20  # what a way may hold back; then the sender feels it
WAYS = ("to", "from")
PIECE_S = 0.02  # with a bound of bandwidth what is written at once takes so long


@dataclass(frozen=True)
class Toxic:
    """What is wrong with one way of a link; the default is nothing."""

    latency_s: float = 0.0
    jitter_s: float = 0.0  # ± around the latency; order is kept, as TCP keeps it
    bytes_per_s: float = 0.0  # 0: no bound
    slice_bytes: int = 0  # at most so many bytes a packet
    slice_s: float = 0.0  # between two slices
    stall: bool = False
    swallow: bool = False
    cut_after_bytes: int = 0  # the link is reset once so many bytes have passed since


CLEAN = Toxic()


class Way:
    """One direction of one link."""

    def __init__(
        self, link: Link, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.link, self.name, self.reader, self.writer = link, name, reader, writer
        self.queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self.held = 0
        self.room = asyncio.Event()
        self.room.set()
        self.last_due = 0.0
        self.passed = 0  # bytes since the toxic was set
        self.lost = 0
        self.idle = True

    def toxic(self) -> Toxic:
        return self.link.gate.toxics[self.name]

    async def read(self) -> None:
        """Take bytes in until the end, and give them to `write` unless nothing is wrong and nothing waits."""
        while True:
            data = await self.reader.read(CHUNK)
            toxic = self.toxic()
            if toxic.swallow:
                self.lost += len(data) or 1  # an end is lost too
                if not data:
                    return
                continue
            if data and toxic is CLEAN and self.idle and self.queue.empty():
                await self._send(data)
                continue
            wait = max(0.0, toxic.latency_s + self.link.gate.random.uniform(-1, 1) * toxic.jitter_s)
            self.last_due = max(self.last_due, time.monotonic() + wait)
            self.held += len(data)
            if self.held > HELD_BYTES_MAX:
                self.room.clear()
            self.queue.put_nowait((self.last_due, data))
            if not data:
                return
            await self.room.wait()

    async def write(self) -> None:
        """Pass on what waits, when it is due and in the pieces that the toxic of that moment allows."""
        while True:
            due, data = await self.queue.get()
            self.idle = False
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._not_stalled()
            if not data:
                if not self.writer.is_closing():
                    self.writer.write_eof()
                return
            rest = data
            while rest:
                toxic = self.toxic()
                size = _piece(toxic, len(rest))
                piece, rest = rest[:size], rest[size:]
                await self._send(piece)
                pause = toxic.slice_s if toxic.slice_bytes else 0.0
                if toxic.bytes_per_s:
                    pause = max(pause, size / toxic.bytes_per_s)
                if pause:
                    await asyncio.sleep(pause)
                await self._not_stalled()
            self.held -= len(data)
            self.room.set()
            self.idle = True

    async def _not_stalled(self) -> None:
        while self.toxic().stall:
            await self.link.gate.wait_change()

    async def _send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.passed += len(data)
        self.link.gate.bytes[self.name] += len(data)
        limit = self.toxic().cut_after_bytes
        if limit and self.passed >= limit:
            self.link.reset()


def _piece(toxic: Toxic, size: int) -> int:
    """How much may be written at once."""
    if toxic.slice_bytes:
        size = min(size, toxic.slice_bytes)
    if toxic.bytes_per_s:
        size = min(size, max(1, int(toxic.bytes_per_s * PIECE_S)))
    return size


class Link:
    """One client's connection and ours to the server behind it."""

    def __init__(self, gate: Gate, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.gate, self.client, self.server = gate, client, server
        self.ways: list[Way] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def run(self, readers: Sequence[asyncio.StreamReader]) -> None:
        """Pass on both ways until both have ended, or one side is gone."""
        self.ways = [Way(self, "to", readers[0], self.server), Way(self, "from", readers[1], self.client)]
        self.tasks = [asyncio.ensure_future(part()) for way in self.ways for part in (way.read, way.write)]
        try:
            await asyncio.gather(*self.tasks)
        except OSError:
            self.reset()
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            for writer in (self.client, self.server):
                writer.close()

    def reset(self) -> None:
        """RST to both sides, at once."""
        for writer in (self.client, self.server):
            _reset(writer)
        for task in self.tasks:
            task.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.is_closing():
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


class Gate:
    """One listening port before one server, and all links through it."""

    def __init__(self, port: int, upstream: tuple[str, int], seed: int) -> None:
        self.port, self.upstream = port, upstream
        self.random = random.Random(seed)
        self.toxics: dict[str, Toxic] = dict.fromkeys(WAYS, CLEAN)
        self.links: set[Link] = set()
        self.bytes = dict.fromkeys(WAYS, 0)
        self.accepted = self.refused = self.resets = 0
        self._server: asyncio.Server | None = None
        self._change = asyncio.Event()

    async def listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port, limit=4 * CHUNK)

    async def down(self) -> None:
        """Refuse connections and reset those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def set(self, ways: Sequence[str], toxic: Toxic) -> None:
        """Change what is wrong; a link that lost bytes is reset when the loss ends: it can never be whole again."""
        for way in ways:
            self.toxics[way] = CLEAN if toxic == CLEAN else toxic
        for link in list(self.links):
            for one in link.ways:
                if one.name in ways:
                    one.passed = 0
            if any(one.lost and not one.toxic().swallow for one in link.ways):
                self.resets += 1
                link.reset()
        self._change.set()
        self._change = asyncio.Event()

    def reset(self) -> int:
        """RST to every link there is; how many."""
        hit = list(self.links)
        for link in hit:
            link.reset()
        self.resets += len(hit)
        return len(hit)

    async def heal(self) -> None:
        self.set(WAYS, CLEAN)
        await self.listen()

    async def wait_change(self) -> None:
        await self._change.wait()

    def stats(self) -> dict[str, Any]:
        return {
            "links": len(self.links), "accepted": self.accepted, "refused": self.refused, "resets": self.resets,
            "listening": self._server is not None, **{f"bytes_{way}": n for way, n in self.bytes.items()},
        }  # fmt: skip

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link: Link | None = None
        try:
            below, out = await asyncio.open_connection(*self.upstream, limit=4 * CHUNK)
            link = Link(self, writer, out)
            self.links.add(link)
            await link.run((reader, below))
        except OSError:  # the server behind is away: what the client would have heard from its host
            self.refused += 1
            _reset(writer)
        except asyncio.CancelledError:
            _reset(writer)  # by `reset`, or the program ends; asyncio would print it
        finally:
            if link is not None:
                self.links.discard(link)
