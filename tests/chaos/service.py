"""The agents of a chaos run, as a program: what is asked is said in the text; each service has agents of its own."""

from __future__ import annotations

import asyncio
import sys

from aos.agents import Answer, Refuse, Service, Work


def build(name: str, agents: int = 3, capacity: int = 64) -> Service:
    """A service whose agents shout, work for a moment, join what came before, and now and then refuse."""
    service = Service(name, replica=f"{name}-a")
    names = [f"{name}-{number}" for number in range(agents)]

    @service.agent(names, capabilities=["shout"], capacity=capacity, batch=True)
    async def shout(batch: list[Work]) -> list[Answer]:
        return [Answer((work.text or "").upper().encode(), "text/plain") for work in batch]

    @service.agent(f"{name}-slow", capabilities=["slow"], capacity=capacity)
    async def slow(work: Work) -> Answer:
        await asyncio.sleep(0.05)
        return Answer((work.text or "").upper().encode(), "text/plain", score=0.5)

    @service.agent(f"{name}-join", capabilities=["join"], capacity=capacity)
    async def join(work: Work) -> str:
        return "+".join((one.payload or b"").decode() for one in work.inputs)

    @service.agent(f"{name}-moody", capabilities=["moody"], capacity=capacity)
    async def moody(work: Work) -> Answer:
        if work.attempt == 1:
            raise Refuse("not at the first attempt", retryable=True)
        return Answer((work.text or "").upper().encode(), "text/plain", score=0.25)

    return service


if __name__ == "__main__":
    build(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3).run()
