"""The cookbook against the truth: polars over the records that were fed, not over SQL."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aos.infra.cookbook import COOKBOOK, render
from aos.infra.database import Database
from aos.infra.migrate import migrate
from aos.infra.store import forget
from tests.stack.storing import bundles_of, write_all
from tests.unit.given_store import world

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sql.md"
LOGS = world(400, seed=7)
ATTEMPTS = [row for row in LOGS["aos.experiences"] if row["kind"] == "attempt"]
ENDS = [row for row in LOGS["aos.experiences"] if row["kind"] == "request"]
written: set[str] = set()


@pytest.fixture
async def url(database_url: str) -> str:
    """The module's database with the world in it, written once."""
    if database_url not in written:
        migrate(database_url)
        forget(database_url)
        await write_all(database_url, bundles_of(LOGS, 50, 5))
        written.add(database_url)
    return database_url


def asked(url: str, name: str) -> list[dict[str, Any]]:
    columns, rows = Database(url).query(COOKBOOK[name].sql)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def same(found: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    """Equal row for row; floats within rounding."""
    assert len(found) == len(truth) > 0
    for one, other in zip(found, truth, strict=True):
        assert set(other) <= set(one)
        for name, value in other.items():
            if isinstance(value, float) and one[name] is not None:
                assert math.isclose(float(one[name]), value, rel_tol=1e-5, abs_tol=1e-6), (name, one, other)
            else:
                assert one[name] == value, (name, one, other)


def attempts() -> pl.DataFrame:
    names = ("requested_at", "domain", "tenant", "task_kind", "agent", "status", "score", "step", "attempt")
    names += ("cost_usd_micros", "cpu_us", "waited_us", "latency_us", "assigned_at", "team")
    return pl.DataFrame([{name: row[name] for name in names} for row in ATTEMPTS], infer_schema_length=None)


def ends() -> pl.DataFrame:
    names = ("status", "score", "policy", "latency_us", "finished_at")
    return pl.DataFrame([{name: row[name] for name in names} for row in ENDS], infer_schema_length=None)


def test_best_agents(url: str) -> None:
    truth = (
        attempts().group_by("domain", "task_kind", "agent")
        .agg(score=pl.col("score").mean(), attempts=pl.len(), error=pl.col("score").std() / pl.len().sqrt())
        .with_columns(rank=pl.col("score").rank("min", descending=True).over("domain", "task_kind").cast(pl.Int64))
        .sort("domain", "task_kind", "rank")
    )  # fmt: skip
    same(asked(url, "best_agents"), truth.to_dicts())


def test_learned_gain(url: str) -> None:
    learned = ends().filter(pl.col("policy").is_null())["score"]
    control = ends().filter(pl.col("policy") == "round-robin")["score"]
    gain = learned.mean() - control.mean()  # type: ignore[operator]
    error = math.sqrt(learned.var() / len(learned) + control.var() / len(control))  # type: ignore[operator,arg-type]
    truth = {"learned": learned.mean(), "control": control.mean(), "gain": gain, "error": error}
    same(asked(url, "learned_gain"), [truth | {"learned_tasks": len(learned), "control_tasks": len(control)}])


def test_waits(url: str) -> None:
    tried = attempts()
    first = tried.filter((pl.col("step") == 0) & (pl.col("attempt") == 1))
    stages = {
        "1 planning": (first["assigned_at"] - first["requested_at"] - first["waited_us"]),
        "2 queue": tried["waited_us"],
        "3 work": tried["latency_us"],
        "4 request": ends()["latency_us"],
    }
    truth = [
        {
            "stage": stage,
            "tasks": len(us),
            "p50_us": us.quantile(0.5, "linear"),
            "p95_us": us.quantile(0.95, "linear"),
        }
        for stage, us in stages.items()
    ]
    same(asked(url, "waits"), truth)


def test_good_pairs(url: str) -> None:
    alone = attempts().group_by("domain", "task_kind", "agent").agg(mean=pl.col("score").mean())
    truth = (
        attempts().filter(pl.col("team").list.len() > 1)
        .with_columns(source=pl.col("team").list.unique()).explode("source")
        .filter(pl.col("source") != pl.col("agent"))
        .group_by("domain", "task_kind", "source", target="agent")
        .agg(collaborations=pl.len(), score=pl.col("score").mean())
        .join(alone, left_on=["domain", "task_kind", "target"], right_on=["domain", "task_kind", "agent"])
        .with_columns(effect=pl.col("score") - pl.col("mean")).drop("mean")
    ).to_dicts()  # fmt: skip
    keys = ("domain", "task_kind", "source", "target")
    found = asked(url, "good_pairs")
    assert [row["effect"] for row in found] == sorted((row["effect"] for row in found), reverse=True)
    best = sorted(truth, key=lambda row: -row["effect"])[:50]
    assert found[0]["effect"] == pytest.approx(best[0]["effect"], rel=1e-5)
    named = {tuple(row[key] for key in keys): row for row in truth}
    same(found, [named[tuple(row[key] for key in keys)] for row in found])
    assert len(found) == len(best)


def test_spend(url: str) -> None:
    truth = (
        attempts().group_by("tenant", "task_kind", "agent")
        .agg(pl.col("cost_usd_micros").sum(), pl.col("cpu_us").sum(), attempts=pl.len())
        .sort(-pl.col("cost_usd_micros"), "tenant", "task_kind", "agent")
    )  # fmt: skip
    same(asked(url, "spend"), truth.to_dicts())


def test_failures(url: str) -> None:
    failed = (pl.col("status") != "ok").sum()
    truth = attempts().group_by("agent").agg(
        attempts=pl.len(), failures=failed, timeouts=(pl.col("status") == "timeout").sum(),
        retries=(pl.col("attempt") > 1).sum(), failure_share=failed / pl.len(),
    ).sort(-pl.col("failure_share"), "agent")  # fmt: skip
    same(asked(url, "failures"), truth.to_dicts())


def test_by_minute(url: str) -> None:
    truth = (
        ends().group_by(minute=pl.col("finished_at") // 60_000_000)
        .agg(
            results=pl.len(), ok=(pl.col("status") == "ok").sum(), max_us=pl.col("latency_us").max(),
            p50_us=pl.col("latency_us").quantile(0.5, "linear"), p95_us=pl.col("latency_us").quantile(0.95, "linear"),
            tasks_per_s=pl.len() / 60.0,
        ).sort("minute")
    ).to_dicts()  # fmt: skip
    assert len(truth) > 3
    for row in truth:
        row["minute"] = datetime.fromtimestamp(row["minute"] * 60, UTC)
    same(asked(url, "by_minute"), truth)


def test_at_rest(url: str) -> None:
    assert asked(url, "at_rest") == [{"unfinished": 0, "doubled": 0}]


def test_skill_over_time_ends_at_the_mean_over_all(url: str) -> None:
    columns, rows = Database(url).query(
        "SELECT DISTINCT ON (domain, task_kind, agent) domain, task_kind, agent, attempts_so_far::int AS attempts, "
        "score_so_far AS score FROM aos.skill_over_time ORDER BY domain, task_kind, agent, bucket DESC"
    )
    truth = (
        attempts()
        .group_by("domain", "task_kind", "agent")
        .agg(attempts=pl.len(), score=pl.col("score").mean())
    )
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    same(found, truth.sort("domain", "task_kind", "agent").to_dicts())


def test_every_query_is_tested_here() -> None:
    assert {f"test_{name}" for name in COOKBOOK} <= set(globals())


def test_the_page_is_the_one_that_is_rendered() -> None:
    assert PAGE.read_text() == render(), "run: python -m aos.infra.cookbook > docs/sql.md"
