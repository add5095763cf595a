"""Toxic proxies as a process of their own, and their control: JSON lines, an order each, on a port of loopback.

`command` is the command line for `Children.spawn`; `Control` steers while it runs. What the toxics mean is in
`tests.chaos.proxy`. A process of its own, so that it shares no interpreter lock with those who measure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.chaos.proxy import LOOPBACK, WAYS, Gate, Toxic

__all__ = ["WAYS", "Control", "Toxic", "command", "serve"]

REPLY_LIMIT_S = 10.0
Route = tuple[int, int]  # port to listen on, port of the server behind


def command(routes: Mapping[str, Route], control: int, seed: int = 1) -> list[str]:
    """The command line of the proxies of `routes` (by the link's name), to be started in the repository's root."""
    argv = [sys.executable, "-m", "tests.chaos.proxy_control", "--control", str(control), "--seed", str(seed)]
    return argv + [f"{name}={ours}:{theirs}" for name, (ours, theirs) in routes.items()]


class Control:
    """Steers proxies from outside; no name of a link means all of them. OSError when the proxy is gone."""

    def __init__(self, port: int) -> None:
        self.port = port

    def wait(self, limit_s: float = REPLY_LIMIT_S) -> None:
        """Until the proxy takes orders."""
        ends = time.monotonic() + limit_s
        while True:
            try:
                self.stats()
                return
            except OSError:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.02)

    def set(self, link: str, toxic: Toxic, ways: Sequence[str] = WAYS) -> None:
        """Make ways of a link toxic, in place of what was wrong with them; connections there are feel it too."""
        self._order(do="set", link=link, toxic=asdict(toxic), ways=list(ways))

    def reset(self, link: str = "") -> int:
        """RST to every connection there is; how many there were."""
        return int(self._order(do="reset", link=link))

    def down(self, link: str = "") -> None:
        """Reset what is connected and refuse connections, until healed."""
        self._order(do="down", link=link)

    def heal(self, link: str = "") -> None:
        """Nothing is wrong any more."""
        self._order(do="heal", link=link)

    def stats(self) -> dict[str, dict[str, Any]]:
        """By link: connections now (`links`) and ever (`accepted`), `refused`, `resets`, `bytes_to`, `bytes_from`,
        whether it is `listening`."""
        found: dict[str, dict[str, Any]] = self._order(do="stats")
        return found

    def _order(self, **order: Any) -> Any:
        with socket.create_connection((LOOPBACK, self.port), timeout=REPLY_LIMIT_S) as link:
            link.sendall(json.dumps(order).encode() + b"\n")
            with link.makefile("rb") as lines:
                line = lines.readline()
        if not line:
            raise OSError("the proxy ended before it answered")
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["said"]


async def serve(routes: Mapping[str, Route], control: int, seed: int = 1) -> None:
    """Run the proxies until cancelled."""
    gates = {name: Gate(ours, (LOOPBACK, theirs), seed) for name, (ours, theirs) in routes.items()}
    for gate in gates.values():
        await gate.listen()

    async def orders(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                reply = {"said": await obey(gates, json.loads(line))}
            except (KeyError, TypeError, ValueError, OSError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(orders, LOOPBACK, control)
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        for gate in gates.values():
            await gate.down()


async def obey(gates: Mapping[str, Gate], order: Mapping[str, Any]) -> Any:
    """Do one order; what it says. KeyError for a link there is not, ValueError for an order there is not."""
    chosen = [gates[order["link"]]] if order.get("link") else list(gates.values())
    match order["do"]:
        case "set":
            for gate in chosen:
                gate.set(order["ways"], Toxic(**order["toxic"]))
        case "reset":
            return sum(gate.reset() for gate in chosen)
        case "down":
            for gate in chosen:
                await gate.down()
        case "heal":
            for gate in chosen:
                await gate.heal()
        case "stats":
            return {name: gate.stats() for name, gate in gates.items()}
        case other:
            raise ValueError(f"no such order: {other}")
    return None


def main() -> None:
    """As a process, until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", type=int, required=True, help="port on loopback that orders come on")
    parser.add_argument("--seed", type=int, default=1, help="of jitter")
    parser.add_argument("routes", nargs="+", help="name=port:port of the server")
    chosen = parser.parse_args()
    routes = {}
    for route in chosen.routes:
        name, _, ports = route.rpartition("=")
        ours, _, theirs = ports.partition(":")
        routes[name] = (int(ours), int(theirs))
    import uvloop

    uvloop.run(serve(routes, chosen.control, chosen.seed))


if __name__ == "__main__":
    main()
