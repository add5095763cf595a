"""A toxic TCP proxy: stands before the broker and the database and spoils what passes, steerable while it runs.

Toxics are those of toxiproxy: latency and jitter, bandwidth, slices, stall (packets that do not come: what is held
passes once healed), swallow (half-open: the bytes are gone, and the link with them once healed), a cut after so many
bytes, reset, down. A toxic may hit one way only (`to` the server, `from` it) and one client only (`only`: words of its
command line), so one proxy makes partitions of single processes.

It runs as a process (`command`, for `Children.spawn`) or in a thread (`in_thread`); both are steered by `Control`, JSON
lines on a loopback port. What TCP itself hides is not imitated: a link that the proxy stalls still accepts connections,
as a host does whose replies are lost after the handshake.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
CHUNK = 1 << 16
HELD_BYTES_MAX = 8 << 20  # what a way may hold back; then the sender feels it
WAYS = ("to", "from")
PIECE_S = 0.02  # with a bound of bandwidth what is written at once takes so long
REPLY_LIMIT_S = 10.0


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
    only: str = ""  # words of the client's command line


CLEAN = Toxic()
Route = tuple[int, int]  # port to listen on, port of the server


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
        toxic = self.link.proxy.toxics[self.name]
        return toxic if toxic is CLEAN or self.link.is_hit(toxic.only) else CLEAN

    async def read(self) -> None:
        """Take bytes in until the end, and give them to `write` unless nothing is wrong and nothing waits."""
        while True:
            data = await self.reader.read(CHUNK)
            toxic = self.toxic()
            if toxic.swallow:
                self.lost += len(data)
                if not data:
                    return
                continue
            if data and toxic is CLEAN and self.idle and self.queue.empty():
                await self._send(data)
                continue
            wait = max(0.0, toxic.latency_s + self.link.proxy.random.uniform(-1, 1) * toxic.jitter_s)
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
                with contextlib.suppress(OSError):
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
            await self.link.proxy.wait_change()

    async def _send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.passed += len(data)
        self.link.proxy.bytes[self.name] += len(data)
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

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.ways: list[Way] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._client_is: str | None = None

    def is_hit(self, only: str) -> bool:
        if not only:
            return True
        if self._client_is is None:
            self._client_is = command_behind(self.client.get_extra_info("peername")[1], self.proxy.port)
        return only in self._client_is

    async def run(self, readers: Sequence[asyncio.StreamReader]) -> None:
        self.ways = [Way(self, "to", readers[0], self.server), Way(self, "from", readers[1], self.client)]
        both = [asyncio.gather(way.read(), way.write()) for way in self.ways]
        self.tasks = [asyncio.ensure_future(_ended(one)) for one in both]
        try:
            await asyncio.gather(*self.tasks)
        except OSError:
            self.reset()  # one side is gone: the other learns it the hard way
        finally:
            for task in (*self.tasks, *both):
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for writer in (self.client, self.server):
                writer.close()

    def reset(self) -> None:
        """RST to both sides, at once."""
        for writer in (self.client, self.server):
            raw = writer.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()


async def _ended(both: asyncio.Future[list[None]]) -> None:
    await both


class Proxy:
    """One listening port before one server."""

    def __init__(self, port: int, upstream: int, seed: int = 1) -> None:
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
        """Change what is wrong; a link whose bytes were swallowed is reset, because it can never be whole again."""
        for way in ways:
            self.toxics[way] = toxic if toxic != CLEAN else CLEAN
        for link in list(self.links):
            for way in link.ways:
                if way.name in ways:
                    way.passed = 0
            if any(way.lost and not way.toxic().swallow for way in link.ways):
                self._reset(link)
        self._change.set()
        self._change = asyncio.Event()

    def reset(self, only: str = "") -> int:
        """RST to every link there is, or to those of one client; how many."""
        hit = [link for link in self.links if link.is_hit(only)]
        for link in hit:
            self._reset(link)
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
            "toxics": {way: asdict(toxic) for way, toxic in self.toxics.items() if toxic is not CLEAN},
        }  # fmt: skip

    def _reset(self, link: Link) -> None:
        self.resets += 1
        link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link: Link | None = None
        try:
            self.accepted += 1
            below, out = await asyncio.open_connection(LOOPBACK, self.upstream, limit=4 * CHUNK)
            link = Link(self, writer, out)
            self.links.add(link)
            await link.run((reader, below))
        except OSError:  # the server behind is away: the client hears what it would have heard from it
            self.refused += 1
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        except asyncio.CancelledError:
            pass  # `reset` ended it; the streams' own callback would print this
        finally:
            if link is not None:
                self.links.discard(link)


def command_behind(port: int, server: int) -> str:
    """Command line of the process that holds the loopback connection from `port` to `server`; empty if it is gone."""
    ours, theirs = (f"0100007F:{number:04X}" for number in (port, server))
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == ours and fields[2] == theirs:
            inode = f"socket:[{fields[9]}]"
    if not inode:
        return ""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if any(os.readlink(entry.path) == inode for entry in os.scandir(folder / "fd")):
                    return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it ended while we looked, or a file of it was closed
    return ""


# ── how it is run and steered ─────────────────────────────────────────────────────────────────────


async def serve(
    routes: Mapping[str, Route], control: int, seed: int = 1, ready: threading.Event | None = None
) -> None:
    """Run the proxies of `routes` (name -> ports) until cancelled; commands come on the port `control`."""
    proxies = {name: Proxy(*ports, seed) for name, ports in routes.items()}
    for proxy in proxies.values():
        await proxy.listen()

    async def commands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    reply = {"ok": True, "said": await _obey(proxies, json.loads(line))}
                except (KeyError, TypeError, ValueError, OSError) as error:
                    reply = {"ok": False, "said": repr(error)}
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(commands, LOOPBACK, control)
    if ready is not None:
        ready.set()
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        for proxy in proxies.values():
            await proxy.down()


async def _obey(proxies: Mapping[str, Proxy], order: Mapping[str, Any]) -> Any:
    chosen = [proxies[order["link"]]] if order.get("link") else list(proxies.values())
    match order["do"]:
        case "set":
            for proxy in chosen:
                proxy.set(order["ways"], Toxic(**order["toxic"]))
        case "reset":
            return sum(proxy.reset(order.get("only", "")) for proxy in chosen)
        case "down":
            for proxy in chosen:
                await proxy.down()
        case "heal":
            for proxy in chosen:
                await proxy.heal()
        case "stats":
            return {name: proxy.stats() for name, proxy in proxies.items()}
        case other:
            raise ValueError(f"no such order: {other}")
    return None


class Control:
    """Steers proxies from outside; a link is named as in `routes`, none means all of them."""

    def __init__(self, port: int) -> None:
        self.port = port

    def set(self, link: str, toxic: Toxic, ways: Sequence[str] = WAYS) -> None:
        """Make a link toxic, in place of what was wrong with these ways before."""
        self._order(do="set", link=link, toxic=asdict(toxic), ways=list(ways))

    def reset(self, link: str = "", only: str = "") -> int:
        """RST to all connections, or to those of one client; how many there were."""
        return int(self._order(do="reset", link=link, only=only))

    def down(self, link: str = "") -> None:
        """Refuse connections until healed."""
        self._order(do="down", link=link)

    def heal(self, link: str = "") -> None:
        """Nothing is wrong any more."""
        self._order(do="heal", link=link)

    def stats(self) -> dict[str, dict[str, Any]]:
        """By link: connections now and ever, resets, bytes, what is wrong."""
        found: dict[str, dict[str, Any]] = self._order(do="stats")
        return found

    def wait(self, limit_s: float = REPLY_LIMIT_S) -> None:
        """Until the proxy takes orders; OSError when it never does."""
        ends = time.monotonic() + limit_s
        while True:
            try:
                self.stats()
                return
            except OSError:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.02)

    def _order(self, **order: Any) -> Any:
        with socket.create_connection((LOOPBACK, self.port), timeout=REPLY_LIMIT_S) as link:
            link.sendall(json.dumps(order).encode() + b"\n")
            with link.makefile("rb") as lines:
                line = lines.readline()
        if not line:
            raise OSError("the proxy ended before it answered")
        reply = json.loads(line)
        if not reply["ok"]:
            raise ValueError(reply["said"])
        return reply["said"]


def command(routes: Mapping[str, Route], control: int, seed: int = 1) -> list[str]:
    """The command line of a proxy as a process of its own."""
    argv = [sys.executable, str(Path(__file__).resolve()), "--control", str(control), "--seed", str(seed)]
    return argv + [f"{name}={ours}:{theirs}" for name, (ours, theirs) in routes.items()]


@contextmanager
def in_thread(routes: Mapping[str, Route], control: int, seed: int = 1) -> Iterator[Control]:
    """The same in a thread of this process."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    task = loop.create_task(serve(routes, control, seed, ready))

    def play() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        rest = asyncio.all_tasks(loop)
        for one in rest:
            one.cancel()
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        loop.run_until_complete(asyncio.sleep(0))  # transports close in the turn after
        loop.close()

    thread = threading.Thread(target=play, name="proxy", daemon=True)
    thread.start()
    while not ready.wait(0.05):
        if task.done():
            thread.join()
            task.result()
    try:
        yield Control(control)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(REPLY_LIMIT_S)


def main() -> None:
    """As a process, until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", type=int, required=True, help="port on loopback that orders come on")
    parser.add_argument("--seed", type=int, default=1, help="of jitter")
    parser.add_argument("routes", nargs="+", help="name=port:port of the server")
    chosen = parser.parse_args()
    routes = {}
    for route in chosen.routes:
        name, _, ports = route.partition("=")
        ours, _, theirs = ports.partition(":")
        routes[name] = (int(ours), int(theirs))
    import uvloop  # here: a thread of a test does not need it

    uvloop.run(serve(routes, chosen.control, chosen.seed))


if __name__ == "__main__":
    main()
