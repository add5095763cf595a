"""A service for tests, run as a program: agents hand out parts, share a context, wait in circles."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from aos.agents import ContextConflict, DelegationFailed, Service, Work


def build(name: str) -> Service:
    """One agent a capability."""
    service = Service(name)

    @service.agent("planner", capabilities=["plan"], capacity=8)
    async def plan(work: Work) -> str:
        """Sum "1 2 3" by handing out each number; "die" ends the process once while it waits."""
        numbers = (work.text or "").split()
        parts = asyncio.gather(*(work.delegate(n, require=["double"], budget=1_000) for n in numbers))
        if "7" in numbers:
            asyncio.get_running_loop().call_later(0.3, _die_once)
        return str(sum(int(part.text) for part in await parts))

    @service.agent("doubler", capabilities=["double"], capacity=8, price_usd_micros=10)
    async def double(work: Work) -> str:
        await asyncio.sleep(1.0 if work.text == "7" else 0.0)
        return str(2 * int(work.text or "0"))

    @service.agent("deep", capabilities=["deep"], capacity=8)
    async def deep(work: Work) -> str:
        """Delegate as deep as it goes; say where it ended and why."""
        try:
            return (await work.delegate(f"{work.text}.", require=["deep"])).text
        except DelegationFailed as error:
            return f"{work.text} {error.code}"

    @service.agent("writer", capabilities=["write"], capacity=4)
    async def write(work: Work) -> str:
        """Add its step to the context, whoever else does so at the same time."""
        while True:
            try:
                await work.update_context({work.step_name: work.text}, work.context_version)
                return work.step_name
            except ContextConflict:
                continue

    @service.agent("reader", capabilities=["read"])
    async def read(work: Work) -> str:
        return f"{work.context_version} {sorted(work.context)}"

    @service.agent("left", capabilities=["left"], capacity=1)
    async def left(work: Work) -> str:
        return await _other(work, "right")

    @service.agent("right", capabilities=["right"], capacity=1)
    async def right(work: Work) -> str:
        return await _other(work, "left")

    @service.agent("sleeper", capabilities=["sleep"])
    async def sleeper(work: Work) -> str:
        await asyncio.sleep(60)
        return "slept"

    @service.agent("boss", capabilities=["boss"])
    async def boss(work: Work) -> str:
        return (await work.delegate("long", require=["sleep"])).text

    return service


async def _other(work: Work, who: str) -> str:
    """Wait a little, so that both are at work, then for the other one."""
    if work.text != "ask":
        return "done"
    await asyncio.sleep(1.0)
    try:
        return (await work.delegate("answer", require=[who], deadline=time.time() + 5)).text
    except DelegationFailed as error:
        return error.code


def _die_once() -> None:
    """End without a word; the next life goes on."""
    if not os.path.exists(sys.argv[2]):
        with open(sys.argv[2], "w") as file:
            file.write("died")
        os._exit(9)


if __name__ == "__main__":
    build(sys.argv[1]).run()
