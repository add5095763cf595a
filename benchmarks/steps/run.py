"""Waves of requests through the line; what each processor spent on a request, the middle of all waves."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator

from aos.codecs.settings import Settings
from aos.infra.store import prepared
from aos.streams.shell.sinks import Portion
from aos.streams.topology import PROCESSORS
from benchmarks.harness import Figure
from benchmarks.pipeline.workload import CAPABILITIES, TENANTS, Load, Ready, capability, messages
from benchmarks.steps.line import Line, beat, register

RATE = 2_000.0  # requests/s of the clock that the processors see
SERVICES = tuple(f"noop-{number}" for number in range(4))
WARM = 3  # waves that are not counted


def measure(rows: int, wave: int, waves: int, agents: int) -> Iterator[Figure]:
    """`waves` waves of `wave` requests, `rows` a message, to `agents` agents."""
    line = Line(Settings(tenants=TENANTS))
    register(line, [_agent(number) for number in range(agents)])
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    producers = [messages(Load("steps", RATE, wave * (waves + WARM) / RATE, rows, 1), 0)]
    for number in range(waves + WARM):
        spent = _wave(line, producers[0], wave // rows)
        for key, value in spent.items():
            if number >= WARM:
                found[key].append(value / wave * 1e6)
    assert line.results == wave * (waves + WARM), f"{line.results} results of {wave * (waves + WARM)}"
    names = [*PROCESSORS, "views"]
    detail = {"wave": wave, "agents": agents, "waves": waves}
    for name in names:
        parts = {what: statistics.median(values) for (one, what), values in found.items() if one == name}
        detail_of = {**detail, **{what: round(value, 1) for what, value in parts.items()}}
        yield Figure(
            f"steps/{rows}-rows/{name}", "CPU time", "us/request", [sum(parts.values())], rows, 1, detail_of
        )


def _wave(line: Line, source: Iterator[Ready], count: int) -> dict[tuple[str, str], float]:
    before = dict(line.spent)
    for ready in itertools.islice(source, count):
        value, headers = ready.at(line.now / 1e6)
        line.send(ready.topic, value, headers)
    line.now += 250_000
    beat(line, SERVICES)
    line.run()
    portions = [Portion(topic, 0, offset, rows, at) for topic, offset, rows, at in line.stored()]
    with line.timed("store", "prepare"):
        prepared(portions, {}, payloads=False)
    return {key: value - before.get(key, 0.0) for key, value in line.spent.items()}


def _agent(number: int) -> dict[str, object]:
    return {
        "service": SERVICES[number % 4], "agent": f"agent-{number:06d}",
        "capabilities": [capability(number % CAPABILITIES)], "capacity": 8,
    }  # fmt: skip
