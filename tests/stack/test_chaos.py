"""The chaos room runs for real: kills with work in hand lose nothing, and the judge finds a naive app guilty."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.stack


def chaos(*arguments: str, expected: int) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.chaos", "--json", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_quick_set_of_faults_loses_and_doubles_nothing(measured: Callable[[str], None]) -> None:
    said = chaos("--suite", "quick", "--seed", "1", "--tasks", "10000", expected=0)
    ran = [row for row in said["table"] if row["times"]]
    assert len(ran) >= 12
    assert said["tasks"] >= 10_000
    assert (said["lost"], said["duplicated"], said["ghost"]) == (0, 0, 0)
    measured(
        f"{said['tasks']} tasks, {len(ran)} kinds of faults, {said['kills']} kills, lost 0, twice 0, ghosts 0; "
        f"recovery p50 {said['recovery_p50_s']} s, p95 {said['recovery_p95_s']} s, max {said['recovery_max_s']} s"
    )


@pytest.mark.long
def test_twenty_kills_with_work_in_hand_lose_and_double_nothing(measured: Callable[[str], None]) -> None:
    said = chaos("--suite", "kill", "--seed", "1", "--tasks", "5000", expected=0)
    assert said["kills"] >= 20
    assert (said["lost"], said["duplicated"], said["ghost"]) == (0, 0, 0)
    assert len(said["table"]) == 40
    measured(
        f"{said['tasks']} tasks, {said['kills']} kills, lost 0; "
        f"recovery p50 {said['recovery_p50_s']} s, p95 {said['recovery_p95_s']} s, max {said['recovery_max_s']} s"
    )


@pytest.mark.long
def test_a_thousand_connections_at_once_lose_and_double_nothing_while_broker_and_workers_are_killed(
    measured: Callable[[str], None],
) -> None:
    argv = [sys.executable, "-m", "tests.chaos.soak", "--json", "--tasks", "20000", "--rate", "200"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert (said["lost"], said["duplicated"], said["ghost"], said["unfinished"]) == (0, 0, 0, 0)
    assert said["tasks"] >= 20_000
    measured(f"{said['tasks']} tasks of {said['clients']} clients, {said['kills']} kills, lost 0, twice 0")


@pytest.mark.long
def test_a_naive_app_is_found_guilty() -> None:
    said = chaos("--naive", "--faults", "1,1", "--tasks", "800", "--patience", "15", expected=1)
    assert said["lost"] > 0
    assert not said["invariants"]["I1"]["held"]
