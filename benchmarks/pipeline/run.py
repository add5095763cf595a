"""One rate after the other, rising, until one is not held."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aos.codecs.settings import Settings
from benchmarks.harness import Figure, say
from benchmarks.pipeline.stand import standing
from benchmarks.pipeline.verdict import figures, judge, told
from benchmarks.pipeline.workload import STEPS_A_REQUEST, Load

DRAIN_S = 60.0


@dataclass(frozen=True)
class Plan:
    """Which rates, how long each, how the rows come."""

    rates: Sequence[float]
    seconds: float
    warm: tuple[float, float]  # rate and seconds of what goes before and is not counted
    rows_max: int = 128
    partitions: int | None = None
    go_on: bool = False
    single_up_to: float = 1_000.0  # requests/s that arrive one row a message; above, producers send batches

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> Plan:
        """The plan of a command line."""
        quick = chosen.quick
        rates = chosen.rates or (
            [100.0, 300.0] if quick else [200.0, 500.0, 1_000.0, 2_000.0, 3_000.0, 5_000.0]
        )
        seconds = chosen.seconds or (5.0 if quick else 60.0)
        warm = (50.0, 2.0) if quick else (200.0, 15.0)
        return cls(
            sorted(rates),
            seconds,
            warm,
            chosen.rows_max,
            chosen.partitions,
            chosen.go_on,
            chosen.single_up_to,
        )

    def load(self, rate: float) -> Load:
        """The load of a rate."""
        rows = 1 if rate <= self.single_up_to else min(self.rows_max, 128)
        return Load(f"r{rate:g}", rate, self.seconds, rows)


def measure(settings: Settings, plan: Plan) -> Iterator[Figure]:
    """The figures of every rate, at last the highest that was held."""
    if plan.partitions is not None:
        settings = dataclasses.replace(settings, partitions=plan.partitions)
    held = 0.0
    with standing(settings, say) as stand:
        warm = Load("warm", *plan.warm, seed=2)
        outcome = stand.run(warm, DRAIN_S)
        say(f"warmed up with {warm.total} requests, {judge(outcome).lost} lost")
        for rate in plan.rates:
            outcome = stand.run(plan.load(rate), DRAIN_S)
            verdict = judge(outcome)
            for line in told(outcome, verdict):
                say(line)
            yield from figures(outcome, verdict, settings.partitions)
            if verdict.held:
                held, full = rate, outcome.cores.says()
                rows = outcome.load.rows
            elif not plan.go_on:
                break
    if held:
        detail = {"seconds": plan.seconds, "steps_s": round(held * STEPS_A_REQUEST), "full_at_held": full}
        detail["full_at_last"] = outcome.cores.says()
        yield Figure("pipeline", "highest rate held", "requests/s", [held], rows, settings.partitions, detail)
