"""The demo: its figures are its queries, learning gains on other names, files and seeds, and nothing stays behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aos.infra.cookbook import COOKBOOK
from aos.infra.database import query
from aos.infra.demo.figures import FIGURES, figure
from aos.infra.demo.run import Options, run
from tests.stack.loopkit import settings_for

ASKED = {
    "tasks", "results", "lost", "duplicated", "p50_ms", "p95_ms", "p99_ms", "tasks_per_s", "score_learned",
    "score_round_robin", "score_best_single", "score_oracle_sample", "sql_rows",
}  # fmt: skip
OTHER_FILES = Path("/usr/share")


def played(bootstrap: str, url: str, prefix: str, **options: Any) -> dict[str, Any]:
    return run(settings_for(bootstrap, url, prefix), Options(quiet=True, **options))


def test_every_figure_of_the_demo_is_its_documented_query(
    bootstrap: str, database_url: str, topic_prefix: str
) -> None:
    found = played(bootstrap, database_url, topic_prefix, tasks=240, seed=5)
    assert set(found) >= ASKED
    again = {name: figure(database_url, name) for name in FIGURES}
    assert {name: found[name] for name in FIGURES} == {name: round(again[name], 4) for name in FIGURES}
    assert (found["tasks"], found["results"], found["lost"], found["duplicated"]) == (240, 240, 0, 0)
    assert found["recovery_s"] < 10
    assert 0 < found["score_sample_mean"] < found["score_best_single"] <= found["score_oracle_sample"] < 1


@pytest.mark.long
@pytest.mark.parametrize("salt", ["one", "another"])
def test_learning_gains_with_other_names_other_files_and_another_seed(
    bootstrap: str, database_url: str, topic_prefix: str, salt: str, measured: Callable[[str], None]
) -> None:
    files = OTHER_FILES if salt == "another" else None
    gain, error, found = gained(
        bootstrap, database_url, topic_prefix, tasks=1500, seed=len(salt), salt=salt, files=files
    )
    measured(f"demo, agents renamed, files {files or 'of Python'}: gain {gain:.3f} ± {error:.3f}")
    assert gain > 2 * error
    assert not any("z" in one["agent"] for one in found["disturbed"]), "agents were to be renamed"
    faulty = {one["how"]: one["share_after_150"] for one in found["disturbed"]}
    assert all(share is None or share < 0.1 for share in faulty.values()), faulty


@pytest.mark.long
def test_without_learning_there_is_no_gain(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    gain, error, _ = gained(bootstrap, database_url, topic_prefix, tasks=1500, seed=3, learn=False)
    measured(f"demo without learning: gain {gain:.3f} ± {error:.3f}")
    assert abs(gain) < 3 * error


def gained(bootstrap: str, url: str, prefix: str, **options: Any) -> tuple[float, float, dict[str, Any]]:
    """The learned arm's gain over the control arm, its standard error, and all figures."""
    found = played(bootstrap, url, prefix, **options)
    sql = COOKBOOK["learned_gain"].sql.replace(
        "FROM aos.tasks WHERE", "FROM aos.tasks WHERE domain = 'default/demo' AND"
    )
    names, rows = query(url, sql)
    row = dict(zip(names, rows[0], strict=True))
    assert math.isclose(row["learned"] - row["control"], row["gain"])
    return row["gain"], row["error"], found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_demo_that_is_ended_half_way_leaves_no_process(stack: object, tmp_path: Path, number: int) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("AOS_") or k == "AOS_CACHE"}
    env |= {"TMPDIR": str(tmp_path), "AOS_RUN_FILE": str(tmp_path / "run.json")}
    command = [sys.executable, "-m", "aos", "demo", "--tasks", "2000"]
    with (tmp_path / "log").open("w+") as log:
        demo = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=env, start_new_session=True)
        wait_for(lambda: "sample:" in (tmp_path / "log").read_text(), 120)
        assert len(of(tmp_path)) > 8, "broker, database, workers and services"
        demo.send_signal(number)
        demo.wait(60)
    wait_for(lambda: not of(tmp_path), 30)
    assert not of(tmp_path)
    assert "Traceback" not in (tmp_path / "log").read_text()


def wait_for(true: Callable[[], bool], limit_s: float) -> None:
    ends = time.monotonic() + limit_s
    while not true() and time.monotonic() < ends:
        time.sleep(0.2)


def of(folder: Path) -> dict[int, str]:
    """Processes that work in a folder: it stands in their command line or environment."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked
        if str(folder).encode() in command + environment:
            found[int(process.name)] = command.decode(errors="replace")[:200]
    return found
