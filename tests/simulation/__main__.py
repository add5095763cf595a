"""``make simulate SEED=123``: play the world of one seed (or of many) and check it; the seed repeats the run."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.simulation.invariants import check, results
from tests.simulation.scene import Scene, scene


def main() -> int:
    """Play; 1 when a seed broke a law."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--requests", type=int, default=40, help="requests a world")
    chosen = parser.parse_args()
    broken = []
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        began = time.perf_counter()
        played = scene(seed, chosen.requests)
        try:
            played.play()
            check(played)
        except Exception:
            traceback.print_exc()
            broken.append(seed)
        print(f"seed {seed}: {_summary(played)}, {time.perf_counter() - began:.1f} s", flush=True)
    if broken:
        print(f"broken: {' '.join(map(str, broken))}", file=sys.stderr)
    return 1 if broken else 0


def _summary(played: Scene) -> str:
    sim = played.simulation
    ends = Counter(row["status"] for row in results(sim.world) if not row["repeated"])
    how = ", ".join(f"{count} {status}" for status, count in sorted(ends.items()))
    return f"{how or 'no result'}; {sim.steps} steps, {sim.kills} kills, {sim.moves} moves"


if __name__ == "__main__":
    sys.exit(main())
