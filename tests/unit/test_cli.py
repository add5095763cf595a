"""The command line without a stack: help, forms of output, sentences instead of tracebacks."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aos.infra.cli.output import Form, emit, emit_one, plain
from aos.infra.reference import _paths

AOS = [sys.executable, "-m", "aos"]


def aos(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder without settings and without a running stack."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("AOS_")}
    env |= {"AOS_RUN_FILE": "/nowhere/aos-stack.json", **environ}
    return subprocess.run(
        [*AOS, *arguments], capture_output=True, text=True, env=env, timeout=60, check=False
    )


def test_help_lists_every_command(measured: Callable[[str], None]) -> None:
    began = time.perf_counter()
    shown = aos("--help")
    measured(f"aos --help in {time.perf_counter() - began:.2f} s")
    assert shown.returncode == 0
    for name in ("up", "demo", "submit", "results", "why", "agents", "tasks", "topics", "feedback", "sql", "status",
                 "health", "doctor", "worker", "replay"):  # fmt: skip
        assert name in shown.stdout


def test_every_command_has_an_example() -> None:
    from aos.infra.cli import app
    from aos.infra.reference import _help

    for path in _paths(app):
        assert "Example:" in _help(path), path


@pytest.mark.parametrize(
    "command", [("status",), ("agents", "list"), ("why", "x"), ("sql", "SELECT 1"), ("submit", "x")]
)
def test_servers_given_by_half_get_a_sentence_and_no_workers_of_ours(command: tuple[str, ...]) -> None:
    told = aos(*command, AOS_BOOTSTRAP="127.0.0.1:1")
    assert told.returncode == 2
    assert told.stdout == ""
    assert "AOS6002" in told.stderr
    assert "aos up" in told.stderr
    assert "Traceback" not in told.stderr


def test_an_unknown_setting_is_refused_by_every_command() -> None:
    told = aos("status", AOS_PARTITION="3")
    assert told.returncode == 2
    assert "AOS5001" in told.stderr
    assert "partition" in told.stderr


def test_an_unknown_processor_is_named() -> None:
    told = aos("worker", "--processors", "routing", AOS_BOOTSTRAP="127.0.0.1:1", AOS_SECRET="s")
    assert told.returncode == 2
    assert "routing" in told.stderr
    assert "encode" in told.stderr


def test_a_topic_is_shown_without_a_stack() -> None:
    shown = aos("topics", "show", "aos.results", "-o", "json")
    columns = {row["column"]: row for row in json.loads(shown.stdout)}
    assert columns["latency_us"]["unit"] == "us"
    assert aos("topics", "show", "aos.nothing").returncode == 1


def test_replay_refuses_a_wrong_file_before_it_starts_anything(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("query,other\na,1\n")
    told = aos("replay", "outcomes", str(file))
    assert told.returncode == 2
    assert "score__" in told.stderr
    assert aos("replay", "outcomes", str(tmp_path / "none.csv")).returncode == 2


def test_health_without_a_stack_is_unhealthy() -> None:
    told = aos("health", "-o", "json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["healthy"] is False


def test_output_says_bytes_ids_and_times_in_json() -> None:
    row = {
        "id": b"\x01" * 16,
        "text": b"hello",
        "bytes": b"\xff\x00",
        "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "list": [b"x"],
    }
    assert plain(row) == {
        "id": "01" * 16,
        "text": "hello",
        "bytes": {"base64": "/wA="},
        "at": "2026-01-02T00:00:00+00:00",
        "list": ["x"],
    }


def test_a_table_is_aligned_and_json_has_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"agent": "a", "score": 0.123456, "more": 1}, {"agent": "longer", "score": None, "more": 2}]
    emit(rows, Form.text, ("agent", "score"))
    assert capsys.readouterr().out == "agent   score\na       0.1235\nlonger\n"
    emit(rows, Form.json, ("agent",))
    assert json.loads(capsys.readouterr().out)[0] == {"agent": "a", "score": 0.123456, "more": 1}
    emit_one({"a": 1, "none": None}, Form.text)
    assert capsys.readouterr().out == "a     1\n"
