"""The replay agents: they alone know the table.

Run as ``python -m aos.infra.replay.agents FILE SERVICE CAPABILITY SLOTS SCALE``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aos.agents import Answer, Service, Work
from aos.infra.replay.table import Outcomes, outcomes


def build(table: Outcomes, name: str, capability: str, slots: int, scale: float) -> Service:
    """An agent a column; the payload of a request is its row's number. `scale`: share of the recorded latency that
    is really waited."""
    service = Service(name)
    column = {agent: number for number, agent in enumerate(table.agents)}

    def answer(work: Work) -> Answer:
        row, agent = int(work.payload or b"0"), column[work.agent]
        cost = None if table.costs is None else round(float(table.costs[row, agent]))
        return Answer(score=float(table.scores[row, agent]), cost_usd_micros=cost)

    async def at_once(batch: list[Work]) -> list[Answer]:
        return [answer(work) for work in batch]

    async def in_time(work: Work) -> Answer:
        assert table.latencies is not None
        await asyncio.sleep(scale * float(table.latencies[int(work.payload or b"0"), column[work.agent]]))
        return answer(work)

    waits = scale > 0 and table.latencies is not None
    declare = service.agent(table.agents, capabilities=[capability], capacity=slots, batch=not waits)
    declare(in_time if waits else at_once)
    return service


if __name__ == "__main__":
    file, service_name, capability_name, slots_text, scale_text = sys.argv[1:]
    build(outcomes(Path(file)), service_name, capability_name, int(slots_text), float(scale_text)).run()
