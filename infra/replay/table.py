"""A table of recorded outcomes: `query`, score__<agent> for each agent, optionally cost__ and latency__."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from aos.codecs.errors import StackError

SCORE, COST, LATENCY = "score__", "cost__", "latency__"


@dataclass(frozen=True)
class Outcomes:
    """Scores [rows, agents] in 0..1; costs in millionths of a US dollar and latencies in seconds, or None."""

    agents: tuple[str, ...]
    scores: np.ndarray
    costs: np.ndarray | None
    latencies: np.ndarray | None


def read(path: Path) -> pl.DataFrame:
    """CSV or Parquet."""
    if not path.is_file():
        raise StackError(f"{path} is no file", "name a CSV or Parquet file")
    try:
        return pl.read_csv(path) if path.suffix.lower() == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StackError(
            f"{path} cannot be read: {str(error).splitlines()[0]}", "name a CSV or Parquet file"
        ) from error


def queries(path: Path, kind_column: str | None) -> tuple[list[str], list[str] | None]:
    """What is asked, and the kinds of task if a column of them is named."""
    frame = read(path)
    wanted = ["query"] + ([kind_column] if kind_column else [])
    for name in wanted:
        if name not in frame.columns:
            raise StackError(
                f"{path} has no column {name}", f"its columns are {', '.join(frame.columns[:12])}"
            )
    kinds = frame[kind_column].cast(pl.String).fill_null("").to_list() if kind_column else None
    return frame["query"].cast(pl.String).fill_null("").to_list(), kinds


def outcomes(path: Path) -> Outcomes:
    """The recorded scores, costs and latencies."""
    frame = read(path)
    agents = tuple(name.removeprefix(SCORE) for name in frame.columns if name.startswith(SCORE))
    if not agents:
        raise StackError(
            f"{path} has no column {SCORE}<agent>", "see docs/replay.md for the form of the table"
        )
    scores = _matrix(frame, SCORE, agents)
    if scores is None or not np.isfinite(scores).all():
        raise StackError(f"{path} has scores that are missing or not finite", "fill or drop those rows")
    return Outcomes(
        agents, np.clip(scores, 0, 1), _matrix(frame, COST, agents), _matrix(frame, LATENCY, agents)
    )


def _matrix(frame: pl.DataFrame, prefix: str, agents: tuple[str, ...]) -> np.ndarray | None:
    names = [prefix + agent for agent in agents]
    if not set(names) <= set(frame.columns):
        return None
    found: np.ndarray = frame.select(pl.col(names).cast(pl.Float64)).to_numpy()
    return found
