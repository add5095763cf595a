"""A short run of `make fuzz`, and that it can fail: each planted fault is reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aos.codecs import wire
from aos.codecs.schemas import RECORDS
from tests.fuzz import bombs, guided, oracle, plants, seeds
from tests.fuzz.targets import targets

ROOT = Path(__file__).resolve().parents[2]
# how many a plant may need until an input meets it, with a seed at which it does
PLANT_INPUTS = 800
# inputs of `make test`; AOS_FUZZ_INPUTS asks for another number (docs/fuzz.md says what was chosen and why)
INPUTS = 100_000


def fuzz(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the program; its exit code and report."""
    command = [sys.executable, "-m", "tests.fuzz", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2900)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_corpus_is_what_the_strategies_make() -> None:
    """Every record has its seeds, though not byte by byte: hypothesis draws other examples in other versions."""
    found = seeds.load()
    assert set(found) == set(RECORDS)
    for name, kept in found.items():
        assert kept, f"no seed of {name}: python -m tests.fuzz.seeds"
        for seed in kept:
            if not seed.json:
                assert seed.value.startswith(RECORDS[name].schema_bytes), (
                    f"{name}: python -m tests.fuzz.seeds"
                )
        rows = [wire.decode_by_name(seed.value, {}, name).num_rows for seed in kept if not seed.json]
        assert max(rows) > 0, name
    assert {name for name, kept in found.items() if any(seed.json for seed in kept)} == seeds.EDGES


def test_the_oracle_finds_nothing_wrong_with_the_seeds() -> None:
    for name, kept in seeds.load().items():
        for seed in kept:
            if not seed.json:
                rows = wire.decode(seed.value, {}, RECORDS[name])
                assert oracle.arrow(seed.value, rows, {}, RECORDS[name].schema, edge=False) == []


@pytest.mark.timeout(3000)
def test_no_input_crashes_hangs_or_is_accepted_in_silence(tmp_path: Path) -> None:
    count = int(os.environ.get("AOS_FUZZ_INPUTS", INPUTS))
    code, report = fuzz("--inputs", str(count), "--seed", "1", "--no-bombs")
    assert (report["crashes"], report["hangs"], report["silent_accepts"]) == (0, 0, 0), report["examples"]
    assert (code, report["inputs"]) == (0, count)
    seen = report["by_target"]
    assert len(seen) == len(targets())
    assert set(report["guided"]) & {"runs", "not_run"}, "what cannot run is told"
    assert all(counts.get("accepted", 0) for counts in seen.values()), seen
    judged = {name for name, counts in seen.items() if counts.get("refused", 0)}
    assert judged >= set(seen) - {"encode", "admit"}, seen  # an edge's refusal is a dead letter


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(plants.PLANTS))
def test_a_planted_fault_is_reported(name: str) -> None:
    code, report = fuzz(
        "--inputs", str(PLANT_INPUTS), "--plant", name, "--no-bombs", "--seed", "2", *plants.WHERE[name]
    )
    assert code == 1
    assert report[plants.SEEN_AS[name]] > 0, report
    assert report["inputs"] == PLANT_INPUTS, "a crash must not end the run"


@pytest.mark.timeout(600)
def test_every_bomb_is_refused_with_little_memory(tmp_path: Path) -> None:
    found = bombs.run(tmp_path)
    assert len(found) >= 30
    assert not [one for one in found if not one.good]


@pytest.mark.timeout(600)
@pytest.mark.skipif(guided.missing() is not None, reason=str(guided.missing()))
@pytest.mark.parametrize("name", ["no-finiteness", "no-types", "no-keys"])
def test_a_planted_fault_is_found_by_following_coverage(name: str, tmp_path: Path) -> None:
    found = guided.run(60_000, 1, tmp_path, plant=name)
    assert "SilentAccept" in found["found"]
    assert list(tmp_path.glob("guided-crash-*")), "the input is kept"
    assert found["branches"] > found["branches_of_seeds"] > 0, "it was led by coverage"


def test_every_kind_of_seed_goes_into_the_guided_corpus(tmp_path: Path) -> None:
    count = guided.write_seeds(tmp_path / "corpus")
    files = sorted((tmp_path / "corpus").iterdir())
    assert len(files) == count > 100
    assert {file.read_bytes()[0] for file in files} == {0, 1, 2}
