"""Counts which edges of the topology the tests of the stack cross, by whatever worker they start (crossing/)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LAST = "test_edges.py"
WHOLE = pytest.StashKey[bool]()
ALL_CROSSINGS = "AOS_TEST_CROSSINGS"  # the file of several runs


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The count comes last; it is of a whole run when every file of this folder has its tests in it, or when several
    runs that make one whole write to one file (tests/run.sh)."""
    mine = [item for item in items if item.path.parent == HERE]
    last = [item for item in mine if item.path.name == LAST]
    items[:] = [item for item in items if item not in last] + last
    whole = {item.path for item in mine} == set(HERE.glob("test_*.py"))
    config.stash[WHOLE] = whole or bool(os.environ.get(ALL_CROSSINGS))


@pytest.fixture(scope="session", autouse=True)
def crossings() -> Iterator[Path]:
    """Where the workers of this run write down what they cross."""
    with tempfile.TemporaryDirectory(prefix="aos-crossings-") as name:
        path = Path(os.environ.get(ALL_CROSSINGS) or Path(name) / "crossings.ndjson")
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "crossing"), *([before] if before else [])])
        os.environ["CROSSINGS_TO"] = str(path)
        yield path
        del os.environ["CROSSINGS_TO"]
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@pytest.fixture
def whole_run(request: pytest.FixtureRequest) -> None:
    """The test is about all tests of this folder; of some of them nothing follows."""
    if not request.config.stash.get(WHOLE, False):
        pytest.skip("not run: only some of the tests of the stack were asked for")
