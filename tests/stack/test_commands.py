"""The commands as a stranger types them: `aos up` in one terminal, the others beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from tests.stack.processes import processes_in

REPOSITORY = Path(__file__).resolve().parents[2]
AOS = [sys.executable, "-m", "aos"]
pytestmark = pytest.mark.stack


class Terminal:
    """An `aos up` in the background and commands that find it."""

    def __init__(self, folder: Path) -> None:
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("AOS_") or k == "AOS_CACHE"}
        self.env["AOS_RUN_FILE"] = str(folder / "run.json")
        self._log = (folder / "up.log").open("w+")
        self.up = subprocess.Popen(
            [*AOS, "up"], stdout=subprocess.DEVNULL, stderr=self._log, text=True, env=self.env
        )
        self.service: subprocess.Popen[str] | None = None

    def wait(self, limit_s: float = 120) -> None:
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            if self.run("health", check=False).returncode == 0:
                return
            if self.up.poll() is not None:
                break
            time.sleep(0.5)
        self._log.seek(0)
        pytest.fail(f"aos up did not come up: {self._log.read()[-2000:]}")

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*AOS, *arguments], capture_output=True, text=True, env=self.env, timeout=120, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def ask(self, *arguments: str) -> object:
        return json.loads(self.run(*arguments, "-o", "json").stdout)

    def start_service(self) -> None:
        self.service = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "examples" / "shout.py")], text=True, env=self.env
        )

    def stop(self, number: int = signal.SIGINT) -> None:
        if self.service is not None:
            self.service.terminate()
            self.service.wait(30)
        self.up.send_signal(number)
        self.up.wait(60)
        self._log.close()


@contextmanager
def terminal_in(folder: Path) -> Iterator[Terminal]:
    """A running `aos up`, stopped at the end."""
    opened = Terminal(folder)
    try:
        opened.wait()
        yield opened
    finally:
        opened.stop()


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    with terminal_in(tmp_path_factory.mktemp("up")) as opened:
        yield opened


def test_a_request_is_submitted_answered_explained_and_rated(terminal: Terminal) -> None:
    terminal.start_service()
    done = terminal.ask("submit", "hello world", "--require", "uppercase", "--id", "first", "--wait")
    assert isinstance(done, list)
    assert (done[0]["status"], done[0]["payload"]) == ("ok", "HELLO WORLD")
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        told = terminal.run("why", "first", check=False)
        if "ended ok" in told.stdout:
            break
        time.sleep(0.3)
    assert "upper" in told.stdout
    assert "chance" in told.stdout
    terminal.run("feedback", "first", "0.5")
    shown = terminal.ask("tasks", "show", "first")
    assert isinstance(shown, dict)
    assert shown["status"] == "ok"
    assert "first" in terminal.run("tasks", "list").stdout
    assert "first" in terminal.run("results").stdout


def test_what_there_is_can_be_listed(terminal: Terminal) -> None:
    topics = {row["topic"] for row in terminal.ask("topics", "list")}  # type: ignore[attr-defined]
    assert {"aos.requests", "aos.results", "aos.ledger", "aos.snapshots"} <= topics
    assert "upper" in terminal.run("agents", "list").stdout
    assert terminal.ask("agents", "show", "upper")["capabilities"] == ["uppercase"]  # type: ignore[index]
    assert terminal.run("agents", "show", "nobody", check=False).returncode == 1
    status = terminal.ask("status")
    assert len(status["processors"]) == 12  # type: ignore[index]
    assert all(row["members"] == 1 for row in status["processors"])  # type: ignore[index]
    assert terminal.ask("sql", "SELECT count(*) AS n FROM aos.tasks")[0]["n"] >= 1  # type: ignore[index]
    wrong = terminal.run("sql", "SELECT nothing", check=False)
    assert wrong.returncode == 1
    assert "nothing" in wrong.stderr
    refused = terminal.run("sql", "DELETE FROM aos_data.request", check=False)
    assert refused.returncode == 1


def test_a_table_of_outcomes_is_replayed(
    terminal: Terminal, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    rows = 400
    table = pl.DataFrame(
        {
            "query": [f"question {n} about {'sums' if n % 2 else 'poems'}" for n in range(rows)],
            "task_name": ["sums" if n % 2 else "poems" for n in range(rows)],
            "score__left": [1.0 if n % 2 else 0.0 for n in range(rows)],
            "score__right": [0.0 if n % 2 else 1.0 for n in range(rows)],
        }
    )
    table.write_parquet(tmp_path / "table.parquet")
    file = str(tmp_path / "table.parquet")
    told = terminal.run(
        "replay", "outcomes", file, "--kind-column", "task_name", "--json", "--in-flight", "4"
    )
    report = json.loads(told.stdout)
    measured(
        f"replay of {rows} rows: mean {report['mean_score']:.3f} of 1, {report['tasks_per_s']:.0f} tasks/s"
    )
    assert report["best_single"] == pytest.approx(0.5)
    assert report["oracle"] == pytest.approx(1.0)
    assert report["failed"] == 0
    assert report["mean_score"] > 0.7, "two agents that are each perfect at one kind are told apart"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_up_ends(number: int, tmp_path: Path) -> None:
    opened = Terminal(tmp_path)
    opened.wait()
    addresses = json.loads((tmp_path / "run.json").read_text())
    opened.stop(number)
    ends = time.monotonic() + 20
    folder = Path(addresses["data_dir"])
    while time.monotonic() < ends and (still_there(str(folder)) or folder.exists()):
        time.sleep(0.2)
    assert still_there(addresses["data_dir"]) == []
    assert not folder.exists()


def still_there(data_dir: str) -> list[str]:
    """Command lines of processes that name the data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it ended while we looked
            if data_dir in line:
                found.append(line)
    return found


def test_without_a_stack_a_command_starts_a_private_one_and_leaves_nothing(
    stack: object, tmp_path: Path
) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("AOS_") or k == "AOS_CACHE"}
    env |= {"AOS_RUN_FILE": str(tmp_path / "run.json"), "TMPDIR": str(tmp_path)}
    command = [*AOS, "sql", "SELECT count(*) AS requests FROM aos.requests", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"requests": 0}]
    assert "starting a private one" in done.stderr
    assert not processes_in(tmp_path)
