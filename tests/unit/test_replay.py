"""Recorded outcomes: the table, the agents that know it, the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aos.codecs.errors import StackError
from aos.infra.replay.agents import build
from aos.infra.replay.play import Options, _report
from aos.infra.replay.table import outcomes, queries


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "table.parquet"
    pl.DataFrame(
        {
            "query": ["a", "b", "c", None],
            "task_name": ["x", "y", None, "x"],
            "score__one": [1.0, 0.0, 0.5, 2.0],
            "score__two": [0.0, 1.0, 0.5, 0.0],
            "cost__one": [1.0, 1.0, 1.0, 1.0],
            "cost__two": [9.0, 9.0, 9.0, 9.0],
        }
    ).write_parquet(file)
    return file


def test_the_player_sees_queries_and_kinds_only_when_a_column_is_named(table: Path) -> None:
    assert queries(table, None) == (["a", "b", "c", ""], None)
    assert queries(table, "task_name") == (["a", "b", "c", ""], ["x", "y", "", "x"])
    with pytest.raises(StackError, match="no column kind"):
        queries(table, "kind")


def test_scores_are_clipped_and_costs_read(table: Path) -> None:
    found = outcomes(table)
    assert found.agents == ("one", "two")
    assert found.scores.tolist() == [[1, 0], [0, 1], [0.5, 0.5], [1, 0]]
    assert found.costs is not None
    assert found.latencies is None


def test_a_score_that_is_missing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("query,score__one\na,0.5\nb,\n")
    with pytest.raises(StackError, match="missing or not finite"):
        outcomes(file)


def test_only_the_chosen_ones_score_is_revealed(table: Path) -> None:
    service = build(outcomes(table), "replay-x", "replay-x", 16, 0.0)
    (group,) = service.groups
    assert group.agents == ("one", "two")
    assert group.batch


def test_the_gap_is_between_best_single_and_oracle(table: Path) -> None:
    order = np.array([0, 1, 2])
    results = [{"status": "ok", "score": score, "cost_usd_micros": 1} for score in (1.0, 0.0, 0.5)]
    report = _report(Options(table), "run", order, results, 2.0)
    assert report.best_single == pytest.approx(0.5)
    assert report.oracle == pytest.approx(2.5 / 3)
    assert report.mean_score == pytest.approx(0.5)
    assert report.gap_closed == pytest.approx(0.0)
    assert report.tasks_per_s == pytest.approx(1.5)
