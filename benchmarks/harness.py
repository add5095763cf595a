"""What every benchmark shares: facts of the machine, one JSON line a figure, percentiles."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aos.infra.local.kafka import VERSION as KAFKA

HERE = Path(__file__).parent
HISTORY = HERE / "history.ndjson"
PACKAGES = {
    "faust": "faust-streaming", "pyarrow": "pyarrow", "numpy": "numpy", "aiokafka": "aiokafka",
    "confluent-kafka": "confluent-kafka", "quixstreams": "quixstreams", "uvloop": "uvloop",
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One measured quantity. `workload`: the permanent id of what was done; `values`: one for each repeat.

    `detail` is what a reader needs to judge the figure: settings, cores by process, where it saturates.
    """

    workload: str
    metric: str
    unit: str
    values: Sequence[float]
    rows_a_message: float
    partitions: int
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median of the repeats."""
        return float(statistics.median(self.values))

    @property
    def spread(self) -> float:
        """Largest less smallest repeat."""
        return float(max(self.values) - min(self.values))

    def line(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The figure as a line of the history."""
        return {
            **facts,
            "workload": self.workload,
            "metric": self.metric,
            "unit": self.unit,
            "value": _short(self.value),
            "repeats": len(self.values),
            "spread": _short(self.spread),
            "rows_a_message": _short(self.rows_a_message),
            "partitions": self.partitions,
            "detail": self.detail,
        }


def facts(note: str = "") -> dict[str, Any]:
    """When, what code, which machine, which versions."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": _processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions(),
        **({"note": note} if note else {}),
    }


def versions() -> dict[str, str]:
    """Versions of the parts that decide the figures."""
    found = {"python": platform.python_version(), "kafka": KAFKA, "linux": platform.release()}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def commit() -> str:
    """The commit that is measured, with a plus sign when the checkout has changes."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "--short=10", "HEAD") or "unknown"
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def record(figures: Iterable[Figure], known: dict[str, Any], path: Path = HISTORY) -> list[dict[str, Any]]:
    """Append the figures to the history; return the lines."""
    lines = [figure.line(known) for figure in figures]
    with path.open("a") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
    return lines


def percentiles(values: np.ndarray) -> dict[str, float]:
    """p50, p95, p99 and the largest."""
    if not len(values):
        return {"p50": float("nan"), "p95": float("nan"), "p99": float("nan"), "max": float("nan")}
    low, high, top = np.percentile(values, [50, 95, 99])
    return {"p50": float(low), "p95": float(high), "p99": float(top), "max": float(values.max())}


def say(text: str) -> None:
    """A line for the reader; stdout is for data."""
    print(text, file=sys.stderr, flush=True)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
