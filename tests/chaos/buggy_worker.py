"""A worker with one planted bug: patches product code in its own process, then runs the worker as `aos worker` does."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tests.chaos import bugs_answers, bugs_shell, bugs_steps
from tests.chaos.planting import BUGS

CATALOGUE = (bugs_answers, bugs_shell, bugs_steps)  # imported for what they register


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.buggy_worker", description=__doc__)
    parser.add_argument("--bug", required=True, choices=sorted(BUGS))
    parser.add_argument("--ordinal", type=int, default=0)
    parser.add_argument("--processors", required=True)
    parser.add_argument("--status-file", type=Path)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    from aos.infra.runtime import work
    from aos.infra.settings import load

    BUGS[chosen.bug].plant()
    return work(load(), chosen.processors.split(","), chosen.ordinal, chosen.status_file)


if __name__ == "__main__":
    sys.exit(main())
