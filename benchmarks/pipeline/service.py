"""A service of no-op agents as a program: what the pipeline costs when the agents' own work costs nothing.

    python -m benchmarks.pipeline.service NAME FIRST COUNT CELLS

Agents FIRST to FIRST + COUNT; agent i has capability i modulo 20. Address and prefix are in AOS_BOOTSTRAP, AOS_PREFIX.
"""

from __future__ import annotations

import sys

from aos.agents import Service, Work
from benchmarks.pipeline.workload import CAPABILITIES, capability

CAPACITY = 8  # attempts of an agent at once: 1,000 agents are not what is measured


def build(name: str, first: int, count: int, cells: int) -> Service:
    """The service; `cells`: over how many cells its agents are spread (one for one partition)."""
    service = Service(name)
    for kind in range(CAPABILITIES):
        agents = [f"agent-{i:04d}" for i in range(first, first + count) if i % CAPABILITIES == kind]
        if not agents:
            continue
        cell = f"cell-{kind % cells}" if cells > 1 else None

        @service.agent(agents, capabilities=[capability(kind)], capacity=CAPACITY, batch=True, cell=cell)
        async def nothing(batch: list[Work]) -> list[None]:
            return [None] * len(batch)

    return service


if __name__ == "__main__":
    build(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])).run()
