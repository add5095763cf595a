"""Laws of the keeper and its children: what is started is ended, whatever happens to the owner."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aos.infra.local.children import Children
from aos.infra.local.host import StackError

# A child that forks a grandchild into a session of its own, as daemons and PostgreSQL's backends do.
FORKING = "import os,time; os.fork() or os.setsid(); time.sleep(600)"
OWNER = """
import sys, time, pathlib
from aos.infra.local.children import Children
children = Children()
folder = pathlib.Path(sys.argv[1]); folder.mkdir()
children.remove_when_gone(folder)
children.spawn("forking", [sys.executable, "-S", "-c", sys.argv[2], "MARK"])
children.spawn("stubborn", ["/bin/sh", "-c", "trap '' TERM INT QUIT; while :; do sleep 600; done # MARK"])
print("up", flush=True)
try:
    time.sleep(600)
finally:
    children.stop_all(0.2)
"""


def until(condition: object, limit_s: float = 10.0) -> bool:
    """Whether `condition()` becomes true before the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def running(mark: str) -> list[int]:
    """The processes, zombies aside, that have `mark` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


def test_spawn_returns_the_pid_and_wait_the_code(children: Children, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pid = children.spawn(
        "say", ["/bin/sh", "-c", "echo $$ $WORD; pwd; exit 3"], env={"WORD": "hi"}, log_path=log
    )
    assert children.wait("say", 10) == 3
    assert log.read_text() == f"{pid} hi\n/\n"
    assert children.pid("say") is None


def test_a_program_that_is_not_there_is_one_sentence(children: Children) -> None:
    with pytest.raises(StackError, match=r"The program /no/such \(ghost\) did not start: .*No such file"):
        children.spawn("ghost", ["/no/such"])


def test_a_running_name_is_refused_and_an_ended_one_is_free(children: Children) -> None:
    children.spawn("one", ["/bin/sleep", "600"])
    with pytest.raises(StackError, match="running already"):
        children.spawn("one", ["/bin/sleep", "600"])
    children.kill("one")
    assert children.wait("one", 0) == -signal.SIGKILL
    children.spawn("one", ["/bin/true"])


def test_restart_brings_a_killed_child_again_and_reports_each_death(children: Children) -> None:
    deaths: queue.Queue[tuple[str, int]] = queue.Queue()
    pids = [
        children.spawn(
            "worker", ["/bin/sleep", "600"], restart=True, on_exit=lambda name, code: deaths.put((name, code))
        )
    ]
    for _ in range(2):
        children.kill("worker")
        assert deaths.get(timeout=10) == ("worker", -signal.SIGKILL)
        assert until(lambda: children.pid("worker") not in (None, *pids))
        pids.append(children.pid("worker") or 0)
    assert children.restarts("worker") == 2
    children.stop("worker")
    assert not until(lambda: children.pid("worker") is not None, 0.6)


def test_the_callback_may_use_the_children(children: Children) -> None:
    """It runs in a thread of its own; in the reading thread it would wait for itself."""
    pids: queue.Queue[int] = queue.Queue()
    children.spawn(
        "first", ["/bin/true"], on_exit=lambda *_: pids.put(children.spawn("second", ["/bin/sleep", "600"]))
    )
    assert pids.get(timeout=10) == children.pid("second")


def test_kill_takes_what_the_child_forked_into_other_sessions(children: Children, tmp_path: Path) -> None:
    mark = str(tmp_path)
    children.spawn("forking", [sys.executable, "-S", "-c", FORKING, mark])
    assert until(lambda: len(running(mark)) == 2)
    children.kill("forking")
    assert until(lambda: running(mark) == [])


def test_stop_asks_first_and_kills_after_the_timeout(children: Children, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children.spawn(
        "polite", ["/bin/sh", "-c", "trap 'echo bye; exit 0' TERM; sleep 600 & wait"], log_path=log
    )
    children.spawn("stubborn", [sys.executable, "-S", "-c", "import signal,time; signal.signal(15, 1); "
                   "print(1, flush=True); time.sleep(600)"], log_path=tmp_path / "up")  # fmt: skip
    assert until(lambda: (tmp_path / "up").read_text() == "1\n")
    children.stop("polite", 10)
    children.stop("stubborn", 0.1)
    assert log.read_text() == "bye\n"
    assert children.wait("stubborn", 0) == -signal.SIGKILL


def test_servers_end_after_all_that_use_them(tmp_path: Path) -> None:
    """A worker that is told to end at the same time as its broker cannot commit."""
    children, log = Children(), tmp_path / "log"
    says = "trap 'sleep {0}; echo {1} >> {2}; exit 0' TERM; touch {2}.{1}; while :; do sleep 0.05; done"
    for name, seconds in (("broker", 0), ("worker", 0.4), ("database", 0), ("service", 0.2)):
        children.spawn(name, ["/bin/sh", "-c", says.format(seconds, name, log)])
        assert until((tmp_path / f"log.{name}").exists)
    children.stop_all(10, {"broker", "database"})
    assert log.read_text().split()[:2] == ["service", "worker"]
    assert sorted(log.read_text().split()[2:]) == ["broker", "database"]


def test_a_user_that_does_not_end_does_not_keep_the_servers(tmp_path: Path) -> None:
    children, log = Children(), tmp_path / "log"
    children.spawn("broker", ["/bin/sh", "-c", f"trap 'echo bye > {log}; exit 0' TERM; touch {log}.up; "
                   "while :; do sleep 0.05; done"])  # fmt: skip
    children.spawn(
        "stuck", ["/bin/sh", "-c", f"trap '' TERM; touch {log}.stuck; while :; do sleep 0.05; done"]
    )
    assert until(lambda: (tmp_path / "log.up").exists() and (tmp_path / "log.stuck").exists())
    began = time.monotonic()
    children.stop_all(0.5, {"broker"})
    assert log.read_text() == "bye\n"
    assert time.monotonic() - began < 5


def test_a_child_that_stands_still_hears_the_stop(children: Children) -> None:
    children.spawn("still", ["/bin/sleep", "600"])
    children.signal("still", signal.SIGSTOP)
    children.stop("still", 10)
    assert children.wait("still", 0) == -signal.SIGTERM


def test_stop_all_may_be_called_again() -> None:
    children = Children()
    children.spawn("one", ["/bin/sleep", "600"])
    children.stop_all()
    children.stop_all()
    with pytest.raises(StackError, match="being stopped"):
        children.spawn("late", ["/bin/true"])


@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name
)
def test_nothing_outlives_the_owner(signum: signal.Signals, tmp_path: Path) -> None:
    mark = str(tmp_path)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.replace("MARK", mark), str(tmp_path / "private"), FORKING],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == "up\n"
    assert until(lambda: len(running(mark)) >= 4)
    owner.send_signal(signum)
    owner.wait(20)
    assert until(lambda: running(mark) == [])
    assert until(lambda: not (tmp_path / "private").exists())


def test_children_die_with_a_killed_keeper(tmp_path: Path) -> None:
    children = Children()
    children.spawn("one", [sys.executable, "-S", "-c", "import time; time.sleep(600)", str(tmp_path)])
    children._keeper.kill()
    assert until(lambda: running(str(tmp_path)) == [])
    children.stop_all()
