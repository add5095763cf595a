"""The chaos report: made of runs and of nothing else; what never ran says so, what failed cannot look good."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import faults, page, report

ROOT = Path(__file__).resolve().parents[2]
RECOVERY = {"recovery_p50_s": 1.0, "recovery_p95_s": 2.0, "recovery_max_s": 3.0}


def run(
    at: str,
    numbers: list[int],
    seed: int = 1,
    failed: tuple[tuple[str, str], ...] = (),
    violated: str = "",
    not_run: dict[int, str] | None = None,
) -> dict[str, Any]:
    """The JSON of a run, as `report.whole` makes it."""
    said = {
        "tasks": 100, "acknowledged": 99, "kills": 2, "lost": 0, "duplicated": 0, "ghost": 0, **RECOVERY,
        "recoveries": [{"number": number, "seconds": 1.25} for number in numbers],
        "invariants": {
            f"I{n}": {"held": f"I{n}" != violated, "violations": int(f"I{n}" == violated), "examples": ["row | 7"]}
            for n in range(1, 12)
        },
    }  # fmt: skip
    ran = [{"number": number, "kills": 1, "failed": failed} for number in numbers]
    command = f'make chaos ARGS="--faults {",".join(map(str, numbers))} --seed {seed} --tasks 100 --rate 20"'
    return report.whole(said, seed, ran, not_run or {}) | {"at": at, "command": command}


def rows(text: str) -> dict[int, list[str]]:
    """The cells of the table of faults."""
    table = text.split("## The faults")[1].split("## The runs")[0]
    found = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if re.match(r"\| \d", line)
    ]
    return {int(cells[0]): cells for cells in found}


@pytest.fixture(autouse=True)
def _all_faults() -> None:
    faults.load_all()


def made(*runs: dict[str, Any]) -> str:
    return page.page(page.merged([], map(page.kept, runs)))


def test_without_a_run_every_row_says_not_run() -> None:
    found = rows(made())
    assert sorted(found) == list(range(1, 41))
    assert {cells[2] for cells in found.values()} == {"not run"}
    assert "0 of 40 have run" in made()


def test_a_fault_that_ran_has_its_figures_its_seed_and_the_command_that_repeats_it() -> None:
    text = made(run("2026-01-01 10:00", [1, 7], seed=42))
    assert rows(text)[7] == ["7", faults.REGISTRY[7].name, "held", "1", "1", "1.2 / 1.2 / 1.2", "42", "1"]
    assert rows(text)[2][2] == "not run"
    assert 'make chaos ARGS="--faults 1,7 --seed 42 --tasks 100 --rate 20"    # run 1' in text
    assert "2 of 40 have run, 2 of them held" in text


def test_a_row_keeps_its_latest_run_whatever_the_order_in_which_runs_are_added() -> None:
    old, new = (
        run("2026-01-01 10:00", [1, 7], seed=1),
        run("2026-01-02 10:00", [7], seed=2, failed=(("I8", "late"),)),
    )
    for text in (made(old, new), made(new, old)):
        assert rows(text)[7][2:] == ["**failed**: late", "1", "1", "1.2 / 1.2 / 1.2", "2", "2"]
        assert rows(text)[1][6:] == ["1", "1"]
        assert "2 of 40 have run, 1 of them held" in text


def test_a_fault_that_could_not_be_injected_says_why_and_a_run_of_it_is_not_forgotten_for_that() -> None:
    never = run("2026-01-01 10:00", [1], not_run={9: "no tmpfs here"})
    assert rows(made(never))[9][2] == "not run: no tmpfs here"
    later = run("2026-01-03 10:00", [1], not_run={9: "no tmpfs there"})
    text = made(never, run("2026-01-02 10:00", [9]), later)
    assert rows(text)[9][2] == "held"


def test_a_violated_invariant_stands_at_every_fault_of_its_run_and_with_an_example() -> None:
    text = made(run("2026-01-01 10:00", [1, 7], violated="I5"))
    assert rows(text)[1][2] == rows(text)[7][2] == "**its run violated I5**"
    assert "10 of 11 held" in text
    assert "Run 1, I5: 1 times, such as: row | 7" in text


def test_what_is_promised_and_what_is_not_stand_above_the_figures() -> None:
    text = made()
    assert text.index("## The promise") < text.index("## What is not promised") < text.index("## The faults")
    assert "Loss of the only disk" in text
    assert "Power loss without replication" in text


def test_runs_are_kept_beside_the_page_and_a_run_that_is_added_again_is_there_once(tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    first = run("2026-01-01 10:00", [1])
    page.add(target, [first])
    page.add(target, [run("2026-01-02 10:00", [7]), first])
    kept = page.read(tmp_path / "report.ndjson")
    assert [one["at"] for one in kept] == ["2026-01-01 10:00", "2026-01-02 10:00"]
    assert target.read_text() == page.page(kept)
    page.add(target, [])
    assert target.read_text() == page.page(kept)


def test_files_of_runs_are_merged_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for at, number in (("2026-01-01 10:00", 1), ("2026-01-02 10:00", 2)):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(run(at, [number])))
    monkeypatch.setattr("sys.argv", ["page", "--report", str(tmp_path / "r.md"), *map(str, files)])
    assert page.main() == 0
    assert "2 of 40 have run" in (tmp_path / "r.md").read_text()


def test_the_page_in_the_repository_is_made_of_the_runs_beside_it() -> None:
    docs = ROOT / "docs" / "chaos-report.md"
    assert docs.read_text() == page.page(page.read(docs.with_suffix(".ndjson"))), (
        "python -m tests.chaos.page --report docs/chaos-report.md"
    )
