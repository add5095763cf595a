"""Planted bugs: each changes product code at run time in a worker that only tests start. The judge must report each.

`python -m tests.chaos.bugs` runs them one after the other and says which law caught which. The product knows nothing
of this: the switch is the program that is started (`tests.chaos.buggy_worker`), and `aos worker` has no such option.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from tests.chaos import bugs_answers, bugs_shell, bugs_steps
from tests.chaos.planting import BUGS, Bug
from tests.chaos.stand import ROOT

RUN_S = 420
CATALOGUE = (bugs_answers, bugs_shell, bugs_steps)  # imported for what they register


def run(one: Bug, tasks: int, rate: float) -> dict[str, Any]:
    """One run with the bug planted: what the judge reported."""
    argv = [
        sys.executable,
        "-m",
        "tests.chaos",
        "--bug",
        one.name,
        "--tasks",
        str(tasks),
        "--rate",
        str(rate),
        "--json",
    ]
    argv += ["--faults", one.faults or "none", "--patience", "25"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S, check=False)
    if not done.stdout.startswith("{"):
        return {
            "bug": one.name,
            "where": one.where,
            "reported": [],
            "caught": False,
            "error": done.stderr[-800:],
        }
    said = json.loads(done.stdout)
    reported = [name for name, item in said["invariants"].items() if not item["held"]]
    return {"bug": one.name, "where": one.where, "reported": reported, "wanted": sorted(one.laws),
            "caught": bool(one.laws & set(reported)), "exit": done.returncode,
            "examples": {name: said["invariants"][name]["examples"][:1] for name in reported}}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.bugs", description=__doc__)
    parser.add_argument("names", nargs="*", help="bugs to plant; all when none is named")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--rate", type=float, default=50.0)
    chosen = parser.parse_args()
    missed = 0
    for name in chosen.names or BUGS:
        said = run(BUGS[name], chosen.tasks, chosen.rate)
        missed += not said["caught"]
        print(json.dumps(said), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
