"""Plays the queries with a bounded number in flight, and says what that was worth."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aos.agents.sdk.client import Client
from aos.codecs.errors import StackError
from aos.codecs.settings import Settings
from aos.infra.local.children import Children
from aos.infra.replay.table import outcomes, queries
from aos.infra.security.connections import clients, surroundings
from aos.infra.up import outside

LAST = 1_000  # rows of the figures that end with _last
RESULT_S = 120.0  # how long one result may take


@dataclass(frozen=True)
class Options:
    """What `aos replay outcomes` takes."""

    file: Path
    kind_column: str | None = None
    in_flight: int = 16
    seed: int = 0
    shuffle: bool = False
    limit: int | None = None
    latency_scale: float = 0.0


@dataclass(frozen=True)
class Report:
    """Scores are means over rows, 0 to 1. `gap_closed` = (mean - best single) / (oracle - best single), over all
    rows; the figures that end with _last are over the same last 1,000 rows, baselines included."""

    rows: int
    agents: int
    domain: str
    mean_score: float
    mean_score_last: float
    best_single: float
    best_single_last: float
    oracle: float
    oracle_last: float
    gap_closed: float
    gap_closed_last: float
    mean_cost_usd_micros: float
    failed: int
    tasks_per_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(settings: Settings, options: Options, say: Callable[[str], None] = lambda text: None) -> Report:
    """Play the file on the AOS of the settings (broker and workers must run)."""
    run = uuid.uuid4().hex[:8]
    texts, kinds = queries(options.file, options.kind_column)
    order = np.arange(len(texts))
    if options.shuffle:
        np.random.default_rng(options.seed).shuffle(order)
    order = order[: options.limit]
    with Children() as children:
        env = {**outside(), **surroundings(settings)}
        argv = [sys.executable, "-m", "aos.infra.replay.agents", str(options.file.resolve()), f"replay-{run}"]
        argv += [f"replay-{run}", str(options.in_flight), str(options.latency_scale)]
        children.spawn("replay-agents", argv, env=env)
        began, results = asyncio.run(_play(settings, options, run, texts, kinds, order, say))
        ended = time.monotonic()
    return _report(options, run, order, results, ended - began)


async def _play(
    settings: Settings,
    options: Options,
    run: str,
    texts: list[str],
    kinds: list[str] | None,
    order: np.ndarray,
    say: Callable[[str], None],
) -> tuple[float, list[dict[str, Any]]]:
    """Results in the order of submission; the clock starts with the first result (agents are known then)."""
    slots = asyncio.Semaphore(options.in_flight)
    async with Client(prefix=settings.prefix, kafka=clients(settings)) as client:

        async def one(number: int, row: int) -> dict[str, Any]:
            request = {
                "id": f"replay-{run}-{number}",
                "text": texts[row],
                "payload": str(row).encode(),
                "require": [f"replay-{run}"],
                "domain": f"replay-{run}",
            }
            if kinds is not None:
                request["task_kind"] = kinds[row]
            async with slots:
                return await client.run(timeout=RESULT_S, **request)

        await _first(client, run)
        began = time.monotonic()
        tasks = [asyncio.create_task(one(number, int(row))) for number, row in enumerate(order)]
        for done, task in enumerate(tasks):
            await task
            if done % 500 == 499:
                say(f"{done + 1} of {len(tasks)} rows")
        return began, [task.result() for task in tasks]


async def _first(client: Client, run: str) -> None:
    """Wait until the replay agents are known: a request of another domain that teaches nothing here."""
    probe = {"text": "", "payload": b"0", "require": [f"replay-{run}"], "domain": f"replay-{run}-probe"}
    for attempt in range(8):
        result = await client.run(id=f"replay-{run}-probe-{attempt}", timeout=RESULT_S, **probe)
        if result["status"] == "ok":
            return
    raise StackError(f"the replay agents do not answer: {result['message']}", "see `aos status`")


def _report(
    options: Options, run: str, order: np.ndarray, results: list[dict[str, Any]], seconds: float
) -> Report:
    table = outcomes(options.file)
    scores = np.array([row["score"] if row["status"] == "ok" else 0.0 for row in results])
    possible = table.scores[order]
    best, oracle = possible.mean(0).max(), possible.max(1).mean()
    last = possible[-LAST:]
    best_last, oracle_last = last.mean(0).max(), last.max(1).mean()
    return Report(
        rows=len(order),
        agents=len(table.agents),
        domain=f"default/replay-{run}",
        mean_score=float(scores.mean()),
        mean_score_last=float(scores[-LAST:].mean()),
        best_single=float(best),
        best_single_last=float(best_last),
        oracle=float(oracle),
        oracle_last=float(oracle_last),
        gap_closed=_gap(scores.mean(), best, oracle),
        gap_closed_last=_gap(scores[-LAST:].mean(), best_last, oracle_last),
        mean_cost_usd_micros=float(np.mean([row["cost_usd_micros"] for row in results])),
        failed=sum(row["status"] != "ok" for row in results),
        tasks_per_s=len(order) / seconds,
    )


def _gap(score: float, best: float, oracle: float) -> float:
    return float((score - best) / (oracle - best)) if oracle > best else 0.0
