"""Fuzzing that follows coverage: libFuzzer keeps what reaches a new branch of the codecs, and bends it further.

``python -m tests.fuzz.guided --runs 100000 --seed 1``; needs atheris (`uv sync --group fuzz`). An input is a byte that
chooses the way in, a byte that chooses the record, and the message. The judge is that of the other targets
(`tests.fuzz.oracle`): an exception that is no refusal, a silent accept, a hang or a fatal signal ends the run, and the
input is kept beside the corpus, in the folder `found`. It sees branches of Python only, not those of pyarrow's C++.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOUND = Path(__file__).parent / "found"
HANG_S = 10  # of the clock: libFuzzer knows no other; ten times what the other targets allow of CPU
MEMORY_MIB = 2_048
MESSAGE_BYTES_MAX = 16_384
DONE = re.compile(r"Done (\d+) runs")
REACHED = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
WAYS = ("wire.decode", "wire.decode_rows", "json")


class SilentAccept(AssertionError):
    """What should have been refused was read."""


def missing() -> str | None:
    """Why this cannot run here."""
    if importlib.util.find_spec("atheris") is None:
        return "atheris is not installed: uv sync --group fuzz"
    return None


def run(runs: int, seed: int, kept: Path = FOUND, plant: str = "") -> dict[str, Any]:
    """Fuzz in a process of its own; what it found: runs, branches reached, the reason of the end if it was not the end
    of the runs."""
    why = missing()
    if why is not None:
        return {"runs": 0, "not_run": why}
    kept.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="aos-guided-") as name:
        corpus = Path(name) / "corpus"
        written = write_seeds(corpus)
        argv = [sys.executable, "-m", "tests.fuzz.guided", "--child", "--plant", plant, f"-runs={runs + written}",
                f"-seed={seed}", f"-max_len={MESSAGE_BYTES_MAX}", f"-timeout={HANG_S}",
                f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={kept}/guided-", str(corpus)]  # fmt: skip
        done = subprocess.run(
            argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
        )
    said = done.stderr + done.stdout
    counted, reached = DONE.search(said), REACHED.findall(said)
    first, last = (list(map(int, reached[place])) for place in (0, -1)) if reached else ([0] * 3, [0] * 3)
    found: dict[str, Any] = {
        "runs": int(counted[1]) if counted else 0, "seeds": written, "branches_of_seeds": first[0],
        "branches": last[0], "features": last[1], "kept": last[2],
    }  # fmt: skip
    if done.returncode != 0:
        found["found"] = _reason(said)
    return found


def _reason(said: str) -> str:
    """The line that says what ended the run."""
    for word in ("SilentAccept:", "Error", "ERROR"):
        for line in said.splitlines():
            if word in line:
                return line[:300]
    return said[-300:]


def write_seeds(folder: Path) -> int:
    """The corpus as libFuzzer takes it; how many files."""
    from tests.fuzz import seeds
    from tests.fuzz.targets import EDGE_NAMES, NAMES

    folder.mkdir()
    count = 0
    for name, found in seeds.load().items():
        for one in found:
            ways = [2] if one.json else [0, 1] if name in EDGE_NAMES else [0]
            for way in ways:
                names = NAMES if way == 0 else EDGE_NAMES
                (folder / f"{count}").write_bytes(bytes([way, names.index(name)]) + one.value)
                count += 1
    return count


def child(arguments: list[str], plant: str) -> None:
    """The process that is instrumented; never returns."""
    import atheris  # type: ignore[import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["aos.codecs"], enable_loader_override=False):
        from tests.fuzz import plants, targets
    if plant:
        plants.PLANTS[plant]()
    by_name = {target.name: target for target in targets.targets()}

    def one(data: bytes) -> None:
        if len(data) < 2:
            return
        way = WAYS[data[0] % len(WAYS)]
        names = targets.NAMES if way == "wire.decode" else targets.EDGE_NAMES
        wrong = by_name[way].run([(names[data[1] % len(names)], data[2:], {})])
        if wrong:
            raise SilentAccept("; ".join(wrong)[:250])

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", default="", help="break the product on purpose: must be found")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen, rest = parser.parse_known_args()
    if chosen.child:
        child(rest, chosen.plant)
    found = run(chosen.runs, chosen.seed, plant=chosen.plant)
    print(json.dumps(found))
    return 1 if "found" in found or "not_run" in found else 0


if __name__ == "__main__":
    sys.exit(main())
