"""What a worker leaves on the machine: nothing."""

from __future__ import annotations

from pathlib import Path

import faust
import pytest

from aos.streams.shell.app import make_app, member_of
from aos.streams.shell.options import Options
from aos.streams.topology import PROCESSORS


async def test_an_app_makes_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust makes three an app and prefix when it starts, and leaves them: hundreds after a run of the tests."""
    monkeypatch.chdir(tmp_path)
    made: list[Path] = []
    monkeypatch.setattr(Path, "mkdir", lambda path, *args, **more: made.append(path))
    plain = faust.App("plain", broker="kafka://localhost:1", store="memory://")
    await plain.on_first_start()
    assert len(made) == 3
    made.clear()
    await make_app(PROCESSORS["match"], {"aos.tasks": 1}, Options("localhost:1")).on_first_start()
    assert made == []


def test_a_member_that_starts_again_is_the_same_one_and_with_other_partitions_another() -> None:
    name = member_of("aos.match", 0, {"aos.tasks": 2, "aos.fleet": 1})
    assert name == member_of("aos.match", 0, {"aos.fleet": 1, "aos.tasks": 2})
    assert name != member_of("aos.match", 1, {"aos.fleet": 1, "aos.tasks": 2})
    assert name != member_of("aos.match", 0, {"aos.fleet": 1, "aos.tasks": 3})
