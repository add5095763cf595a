"""A service for tests, run as a program: agents that shout, count, fail, judge or sleep, by what the text says."""

from __future__ import annotations

import asyncio
import sys

from aos.agents import Answer, Refuse, Service, Work


def build(name: str, agents: int = 2, capacity: int = 64) -> Service:
    """A service with `agents` agents of each capability; `service.ready` is set when it reads its inbox."""
    service = Service(name)
    names = [f"{name}-{number}" for number in range(agents)]

    @service.agent(names, capabilities=["shout"], capacity=capacity, batch=True)
    async def shout(batch: list[Work]) -> list[Answer]:
        return [Answer((work.text or "").upper().encode(), "text/plain") for work in batch]

    @service.agent(f"{name}-moody", capabilities=["moody"], capacity=capacity)
    async def moody(work: Work) -> Answer:
        text = work.text or ""
        if text.startswith("sleep "):
            await asyncio.sleep(float(text.split()[1]))
        if text.startswith("fail"):
            raise Refuse("told to fail", retryable="again" in text)
        return Answer(text.encode(), "text/plain", score=0.25)

    @service.agent(f"{name}-join", capabilities=["join"], capacity=capacity)
    async def join(work: Work) -> str:
        return "+".join((one.payload or b"").decode() for one in work.inputs)

    @service.agent(f"{name}-judge", capabilities=["judge"], capacity=capacity)
    async def judge(work: Work) -> Answer:
        return Answer(b"judged", "text/plain", score=0.75)

    return service


if __name__ == "__main__":
    build(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2).run()
