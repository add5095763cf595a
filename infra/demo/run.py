"""The demo's course: start everything, work, kill, disturb, and say what came of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aos.agents.builtin.compressors import FAULTS, SERVICES
from aos.agents.sdk.client import Client
from aos.codecs.errors import StackError
from aos.codecs.settings import Settings
from aos.infra.demo.figures import DOMAIN, SAMPLE
from aos.infra.demo.files import Piece, pieces
from aos.infra.demo.report import report
from aos.infra.security.connections import clients, surroundings
from aos.infra.up import Up, outside
from aos.streams.topology import GROUPS

IN_FLIGHT = 40
CONTROL_EVERY = 10  # one task in ten goes round robin
SAMPLE_PIECES = 60  # pieces that every compressor really runs
RESULT_S = 90.0
COMPRESSORS = 12
STARTED_S = 60.0


@dataclass(frozen=True)
class Options:
    """What the command takes. `salt` renames all agents (a test)."""

    tasks: int = 3000
    seed: int = 1
    learn: bool = True
    files: Path | None = None
    quiet: bool = False
    salt: str = ""


@dataclass
class Course:
    """What happened, as the demo saw it."""

    sent: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)
    killed_at: float = 0.0
    recovered_s: float | None = None
    disturbed_at: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)


def run(settings: Settings, options: Options) -> dict[str, Any]:
    """Run the demo and return its figures."""
    say = _silent if options.quiet else _say
    chosen = pieces(options.tasks, options.seed, options.files)
    groups = (
        GROUPS if options.learn else {name: group for name, group in GROUPS.items() if name != "learning"}
    )
    say(
        f"{len(chosen)} pieces of files, seed {options.seed}" + ("" if options.learn else ", learning is off")
    )
    settings = dataclasses.replace(settings, secret=settings.secret or "demo")
    with Up(settings, groups=groups, announce=True, say=say) as up:
        demo = Demo(up, options, say)
        demo.start_fleet()
        course = asyncio.run(demo.play(chosen))
        found = report(up.settings.database_url, course, options)
    if not options.quiet:
        print(found.text)
    return found.figures


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Demo:
    """One run over a started AOS."""

    def __init__(self, up: Up, options: Options, say: Any) -> None:
        self._up = up
        self._options = options
        self._say = say
        self._random = random.Random(options.seed)
        self._faults = up.stack.data_dir / "demo-faults.json"
        self.course = Course()

    def start_fleet(self) -> None:
        """The four services, each a process."""
        own = {
            **surroundings(self._up.settings),
            FAULTS: str(self._faults),
        }
        for name in SERVICES:
            argv = [sys.executable, "-m", "aos.agents.builtin.compressors", name]
            argv += [self._options.salt] if self._options.salt else []
            log = self._up.stack.data_dir / f"service-{name}.log"
            self._up.stack.children.spawn(
                f"service-{name}", argv, env={**outside(), **own}, log_path=log, restart=True
            )

    async def play(self, chosen: list[Piece]) -> Course:
        """The sample, then the tasks with kill and disturbance in their course."""
        settings = self._up.settings
        async with Client(prefix=settings.prefix, kafka=clients(settings)) as client:
            agents = await self._fleet_known()
            self._say(
                f"fleet: {len(agents)} compressors, 2 inspectors, 2 verifiers in {len(SERVICES)} processes"
            )
            await self._sample(client, chosen, agents)
            await self._main(client, chosen)
        return self.course

    async def _fleet_known(self) -> list[str]:
        """Wait until SQL knows the compressors (it learns of them by the same topics)."""
        from aos.infra.database import query

        sql = "SELECT agent FROM aos.agents WHERE 'compress' = ANY(capabilities) AND capacity > 0 ORDER BY agent"
        ends = time.monotonic() + STARTED_S
        while time.monotonic() < ends:
            _, rows = query(self._up.settings.database_url, sql)
            if len(rows) == COMPRESSORS:
                return [row[0] for row in rows]
            await asyncio.sleep(0.2)
        raise StackError("the demo's agents did not register", f"see {self._up.stack.data_dir}/service-*.log")

    async def _sample(self, client: Client, chosen: list[Piece], agents: list[str]) -> None:
        """Pieces that every compressor runs, in a learning domain of their own: best single and oracle."""
        count = min(SAMPLE_PIECES, len(chosen))
        wanted = [(number, piece, agent) for number, piece in enumerate(chosen[:count]) for agent in agents]
        self._say(f"sample: {count} pieces by each of {len(agents)} compressors …")
        requests = [
            _request(f"demo-{SAMPLE}-{number}-{agent}", piece, SAMPLE, pin=[agent], inspected=False)
            for number, piece, agent in wanted
        ]
        await self._all(client, requests)

    async def _main(self, client: Client, chosen: list[Piece]) -> None:
        slots = asyncio.Semaphore(IN_FLIGHT)
        third, half = len(chosen) // 3, len(chosen) // 2
        tasks = []
        began = time.monotonic()
        for number, piece in enumerate(chosen):
            await slots.acquire()
            if number == third:
                self._kill()
            if number == half:
                self._disturb()
            policy = "round-robin" if number % CONTROL_EVERY == CONTROL_EVERY - 1 else None
            request = _request(f"demo-{number}", piece, DOMAIN, policy=policy)
            tasks.append(asyncio.create_task(self._one(client, request, slots)))
            self.course.sent += 1
            if number and number % max(1, len(chosen) // 10) == 0:
                self._progress(number, began)
        await asyncio.gather(*tasks)
        self._progress(len(chosen), began)

    async def _one(self, client: Client, request: dict[str, Any], slots: asyncio.Semaphore) -> None:
        try:
            result = await client.run(timeout=RESULT_S, **request)
        finally:
            slots.release()
        result["policy"], result["task_kind"] = request.get("policy"), request["task_kind"]
        self.course.results.append(result)
        if self.course.killed_at and self.course.recovered_s is None:
            self._recovered(result)

    def _recovered(self, result: dict[str, Any]) -> None:
        """The first request that ended after the kill, by the broker's clock."""
        if result["finished_at"].timestamp() <= self.course.killed_at:
            return
        self.course.recovered_s = time.time() - self.course.killed_at
        ended = len(self.course.results)
        after = f"first result after {self.course.recovered_s:.1f} s"
        self._say(f"  … it is back: {after}; {self.course.sent} sent, {ended} ended")

    async def _all(self, client: Client, requests: Iterable[dict[str, Any]]) -> None:
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(request: dict[str, Any]) -> None:
            async with slots:
                await client.run(timeout=RESULT_S, **request)

        await asyncio.gather(*(one(request) for request in requests))

    def _kill(self) -> None:
        """SIGKILL the worker that owns the life of every task, in view."""
        self.course.killed_at = time.time()
        self._say(f"  kill -9 of the worker that supervises and allocates ({', '.join(GROUPS['core'])}) …")
        self._up.kill_worker("core")

    def _disturb(self) -> None:
        """Slow one popular compressor inside and damage another's outputs; nobody is told."""
        counts = Counter(
            agent for row in self.course.results if row["policy"] is None for agent in _compressors(row)
        )
        popular = [agent for agent, _ in counts.most_common(2)]
        kinds = ["slow", "faulty"]
        self._random.shuffle(kinds)
        self.course.faults = dict(zip(popular, kinds, strict=False))
        self.course.disturbed_at = time.time()
        temporary = self._faults.with_suffix(".new")
        temporary.write_text(json.dumps(self.course.faults))
        temporary.replace(self._faults)
        what = ", ".join(f"{agent} is {kind} inside now" for agent, kind in self.course.faults.items())
        self._say(f"  {what}; registration, heartbeats and self-reports stay healthy")

    def _progress(self, number: int, began: float) -> None:
        means = {
            name: _mean(self._scores(policy))
            for name, policy in (("learned", None), ("round robin", "round-robin"))
        }
        scores = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        rate = len(self.course.results) / max(time.monotonic() - began, 0.001)
        self._say(f"{number:>6} of {self._options.tasks}  mean score {scores}  {rate:.0f} tasks/s")

    def _scores(self, policy: str | None) -> list[float]:
        return [row["score"] or 0.0 for row in self.course.results if row["policy"] == policy]


def _compressors(row: dict[str, Any]) -> list[str]:
    return [step["agent"] for step in row["steps"] if step["name"] == "compress" and step["agent"]]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _request(
    id: str,
    piece: Piece,
    domain: str,
    *,
    policy: str | None = None,
    pin: list[str] | None = None,
    inspected: bool = True,
) -> dict[str, Any]:
    """Inspect, compress, verify; the verifier judges the compression."""
    inspect: dict[str, Any] = {"name": "inspect", "require": ["inspect"], "task_kind": "inspect"}
    compress: dict[str, Any] = {"name": "compress", "require": ["compress"], "task_kind": piece.task_kind}
    verify = {
        "name": "verify",
        "require": ["verify"],
        "task_kind": "verify",
        "after": ["compress"],
        "judges": "compress",
    }
    if inspected:
        compress["after"] = ["inspect"]
    if pin:
        compress["pin"] = pin
    request = {
        "id": id,
        "domain": domain,
        "task_kind": piece.task_kind,
        "text": f"make {piece.path.name} as small as you can",
        "payload": piece.read(),
        "content_type": "application/octet-stream",
        "budget_cpu_us": piece.budget_us,
        "steps": [inspect, compress, verify] if inspected else [compress, verify],
        "policy": policy,
    }
    return {name: value for name, value in request.items() if value is not None}
