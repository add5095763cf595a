"""What keeps a worker's side duties from ending its work."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aos.infra.runtime import _write_status


def worker() -> Any:
    return SimpleNamespace(views=SimpleNamespace(staleness_s=lambda: 0.5), metrics={})


def test_the_status_is_written_whole(tmp_path: Path) -> None:
    _write_status(worker(), tmp_path / "status.json")
    assert json.loads((tmp_path / "status.json").read_text())["ready"] is True


def test_a_status_that_cannot_be_written_is_told_and_does_not_end_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "aos.runtime"):
        _write_status(worker(), tmp_path / "no folder" / "status.json")
    assert "the status was not written" in caplog.text


def test_what_may_wait_gives_way_with_all_its_threads() -> None:
    program = """
import os, threading
from aos.infra.runtime import NICE, give_way
own = os.getpriority(os.PRIO_PROCESS, 0)
said = threading.Event()
other = threading.Thread(target=said.wait)
other.start()
give_way()
print([os.getpriority(os.PRIO_PROCESS, int(name)) - own for name in os.listdir("/proc/self/task")].count(NICE) >= 2)
said.set()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
