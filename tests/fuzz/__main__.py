"""``make fuzz ARGS="--inputs 2000000 --seed 1 --json"``: hostile input at every codec and input topic.

Exit code 1 for any crash, hang or silent accept, and for a bomb that is not refused within its memory. The inputs that
are guided by coverage need atheris; without it they are told as not run, which is no failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.fuzz import bombs, guided, plants, seeds, workers
from tests.fuzz.targets import Corpus, targets


def main() -> int:
    """Run, report, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same inputs")
    parser.add_argument("--jobs", type=int, default=2, help="forked workers")
    parser.add_argument("--target", action="append", help="only this target (may be repeated)")
    parser.add_argument(
        "--plant", choices=sorted(plants.PLANTS), help="break the product on purpose: must be reported"
    )
    parser.add_argument("--no-bombs", action="store_true", help="leave the bombs out")
    parser.add_argument(
        "--guided", type=int, default=None, help="further inputs guided by coverage; a tenth of --inputs"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    chosen = parser.parse_args()
    known = targets()
    wanted = [one for one in known if not chosen.target or one.name in chosen.target]
    if not wanted:
        parser.error(f"targets are {', '.join(one.name for one in known)}")
    corpus = Corpus(seeds.load())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aos-fuzz-") as name:
        folder = Path(name)
        found = [] if chosen.no_bombs else bombs.run(folder)
        with workers.planted(chosen.plant) if chosen.plant else nullcontext():
            kept = folder / "found" if chosen.plant else workers.FOUND
            tally = workers.run(chosen.seed, chosen.inputs, wanted, corpus, chosen.jobs, folder, kept)
    runs = chosen.inputs // 10 if chosen.guided is None else chosen.guided
    led = guided.run(runs, chosen.seed) if runs and not (chosen.plant or chosen.target) else {}
    report = {
        "seed": chosen.seed, "inputs": tally.inputs, "crashes": tally.crashes, "hangs": tally.hangs,
        "silent_accepts": tally.silent_accepts, "seconds": round(time.monotonic() - began, 1),
        "by_target": {name: dict(sorted(counts.items())) for name, counts in sorted(tally.by_target.items())},
        "bombs": [one._asdict() for one in found], "examples": tally.examples,
        "guided": led,
    }  # fmt: skip
    print(json.dumps(report) if chosen.json else _table(report, found))
    bad = tally.crashes or tally.hangs or tally.silent_accepts or not all(one.good for one in found)
    bad = bad or "found" in led
    return 1 if bad or tally.inputs != chosen.inputs else 0


def _table(report: dict[str, object], found: list[bombs.Found]) -> str:
    keys = ("accepted", "refused", "crashes", "hangs", "silent_accepts")
    lines = [f"{'target':22}" + "".join(f"{key:>16}" for key in keys)]
    by_target = report["by_target"]
    assert isinstance(by_target, dict)
    for name, counts in by_target.items():
        lines.append(f"{name:22}" + "".join(f"{counts.get(key, 0):>16}" for key in keys))
    lines.append(
        f"seed {report['seed']}: {report['inputs']} inputs in {report['seconds']} s, {report['crashes']} crashes, "
        f"{report['hangs']} hangs, {report['silent_accepts']} silent accepts"
    )
    if found:
        lines += ["", f"{'bomb':34}{'bytes':>12}  {'refused with':14}{'MiB':>8}"]
        lines += [
            f"{one.name:34}{one.bytes:>12}  {one.refused_with:14}{one.rss_mib:>8}{'' if one.good else '  WRONG'}"
            for one in found
        ]
    led = report["guided"]
    if led:
        lines += ["", "guided by coverage: " + _guided(led)]
    examples = report["examples"]
    assert isinstance(examples, list)
    return "\n".join([*lines, *examples])


def _guided(led: Any) -> str:
    if "not_run" in led:
        return f"NOT RUN: {led['not_run']}"
    reached = (
        f"{led['branches']} branches of the codecs reached, {led['branches_of_seeds']} by the corpus alone"
    )
    told = f"{led['runs']} inputs, {reached}"
    return told + (f"; ENDED: {led['found']}" if "found" in led else ", nothing found")


if __name__ == "__main__":
    sys.exit(main())
