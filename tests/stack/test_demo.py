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
from typing import Any, NamedTuple

import pytest

from aos.infra.cookbook import COOKBOOK
from aos.infra.database import query
from aos.infra.demo.figures import FIGURES, figure
from aos.infra.demo.run import Options, run
from aos.infra.migrate import migrate
from aos.infra.store import forget
from tests.stack.loopkit import settings_for
from tests.stack.processes import processes_in

ASKED = {
    "tasks", "results", "lost", "duplicated", "p50_ms", "p95_ms", "p99_ms", "tasks_per_s", "score_learned",
    "score_round_robin", "score_best_single", "score_oracle_sample", "sql_rows",
}  # fmt: skip
OTHER_FILES = Path("/usr/share")


def played(bootstrap: str, url: str, prefix: str, **options: Any) -> dict[str, Any]:
    migrate(url)
    forget(url)  # what other tests left
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
def test_the_gain_stays_with_other_names_other_files_and_another_seed(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    plain = gained(bootstrap, database_url, f"{topic_prefix}a.", seed=1)
    other = gained(bootstrap, database_url, f"{topic_prefix}b.", seed=2, salt="renamed", files=OTHER_FILES)
    for what, one in (("as it is", plain), ("agents renamed, other files, other seed", other)):
        measured(f"demo {what}: gain {one.gain:.3f} ± {one.error:.3f}, {one.figures['disturbed']}")
    assert abs(plain.gain - other.gain) < 2 * math.hypot(plain.error, other.error)
    for one in (plain, other):
        assert one.gain > 2 * one.error
        shares = {each["how"]: each["share_after_150"] for each in one.figures["disturbed"]}
        assert len(shares) == 2
        assert all(share is not None and share < 0.1 for share in shares.values()), shares
    names = {one["agent"] for one in plain.figures["disturbed"]}
    assert not names & {one["agent"] for one in other.figures["disturbed"]}, "agents were to be renamed"


@pytest.mark.long
def test_without_learning_there_is_no_gain(
    bootstrap: str, database_url: str, topic_prefix: str, measured: Callable[[str], None]
) -> None:
    one = gained(bootstrap, database_url, topic_prefix, seed=3, learn=False)
    measured(f"demo without learning: gain {one.gain:.3f} ± {one.error:.3f}")
    assert abs(one.gain) < 2.5 * one.error


class Gained(NamedTuple):
    """The learned arm's gain over the control arm in mean score, its standard error, and all figures."""

    gain: float
    error: float
    figures: dict[str, Any]


def gained(bootstrap: str, url: str, prefix: str, **options: Any) -> Gained:
    found = played(bootstrap, url, prefix, **options)
    here = "FROM aos.tasks WHERE domain = 'default/demo' AND"
    names, rows = query(url, COOKBOOK["learned_gain"].sql.replace("FROM aos.tasks WHERE", here))
    row = dict(zip(names, rows[0], strict=True))
    return Gained(row["gain"], row["error"], found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_demo_that_is_ended_half_way_leaves_no_process(stack: object, tmp_path: Path, number: int) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("AOS_") or k == "AOS_CACHE"}
    env |= {"TMPDIR": str(tmp_path), "AOS_RUN_FILE": str(tmp_path / "run.json")}
    command = [sys.executable, "-m", "aos", "demo", "--tasks", "2000"]
    with (tmp_path / "log").open("w+") as log:
        demo = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=env, start_new_session=True)
        wait_for(lambda: "sample:" in (tmp_path / "log").read_text(), 120)
        assert len(processes_in(tmp_path)) > 8, "broker, database, workers and services"
        demo.send_signal(number)
        demo.wait(60)
    wait_for(lambda: not processes_in(tmp_path), 30)
    assert not processes_in(tmp_path)
    assert "Traceback" not in (tmp_path / "log").read_text()


def wait_for(true: Callable[[], bool], limit_s: float) -> None:
    ends = time.monotonic() + limit_s
    while not true() and time.monotonic() < ends:
        time.sleep(0.2)
