"""The judge, a program of its own: reads journal, topics, SQL and the stand's notes, and says what held.

It imports nothing of AOS: Arrow by pyarrow, Kafka by confluent-kafka, SQL by psycopg. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from tests.chaos import judge_laws, judge_poison
from tests.chaos.journal import ACKNOWLEDGED, UNKNOWN
from tests.chaos.judge_read import Evidence, read_folder, read_places, read_sql, read_topics
from tests.chaos.judge_recovery import recoveries

EXAMPLES = 5
QUIET_S = 60.0


def evidence(folder: Path, bootstrap: str, database_url: str, prefix: str, secrets: list[bytes]) -> Evidence:
    """Everything there is, once the store has reached the ends of the logs or 60 s have passed."""
    poison = judge_poison.read_poison(folder)
    found = read_topics(bootstrap, prefix, secrets, judge_poison.hostile(poison))
    found.poison = poison
    ends = time.monotonic() + QUIET_S
    while True:
        found.reached = read_places(database_url)
        if all(reached >= found.ends.get(place, 0) for place, reached in found.reached.items()):
            break
        if time.monotonic() > ends:
            break
        time.sleep(0.2)
    found.sql = read_sql(database_url)
    read_folder(folder, secrets, found)
    return found


def verdict(found: Evidence) -> dict[str, Any]:
    """What held and what did not, with examples, and the figures."""
    seen: dict[str, list[str]] = {name: list(law(found)) for name, law in judge_laws.LAWS.items()}
    for name, law in judge_poison.LAWS:
        seen[name] += law(found)
    for note in found.noted("fault"):
        for name, what in note["failed"]:
            seen[name].append(f"fault {note['number']}: {what}")
    states = [sent.state for sent in found.sent.values()]
    every = list(recoveries(found))
    return {
        "tasks": len(found.sent),
        "acknowledged": states.count(ACKNOWLEDGED),
        "unknown": states.count(UNKNOWN),
        "kills": sum(1 for note in found.noted("kill") if note["busy"]),
        "lost": len(judge_laws.lost(found)),
        "duplicated": len(judge_laws.duplicated(found)),
        "ghost": len(judge_laws.ghosts(found)),
        "too_slow": sum(1 for row in found.rows("aos.results") if row["code"] in judge_laws.SLOW),
        "sent_again": sum(sent.sends - 1 for sent in found.sent.values()),
        "repeated_results": len(found.rows("aos.results")) - len(judge_laws.finals(found)),
        "poison": judge_poison.figures(found),
        **percentiles([item.seconds for item in every if item.seconds is not None]),
        "recoveries": [asdict(item) for item in every],
        "invariants": {name: held(said) for name, said in seen.items()},
    }


def held(said: list[str]) -> dict[str, Any]:
    """One invariant's entry."""
    return {"held": not said, "violations": len(said), "examples": said[:EXAMPLES]}


def percentiles(seconds: list[float]) -> dict[str, float | None]:
    """p50, p95 (nearest rank) and the largest; None of nothing."""
    ordered = sorted(seconds)

    def rank(share: float) -> float | None:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None

    return {"recovery_p50_s": rank(0.5), "recovery_p95_s": rank(0.95), "recovery_max_s": rank(1.0)}


def violations(said: dict[str, Any]) -> Iterator[str]:
    """The violated invariants with their first example."""
    for name, item in said["invariants"].items():
        if not item["held"]:
            yield f"{name}: {item['violations']} violations, {'; '.join(islice(item['examples'], 1))}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.judge", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--secrets-file", type=Path, help="what must be found nowhere, one a line")
    chosen = parser.parse_args()
    secrets = chosen.secrets_file.read_bytes().split() if chosen.secrets_file else []
    found = evidence(chosen.folder, chosen.bootstrap, chosen.database_url, chosen.prefix, secrets)
    said = verdict(found)
    print(json.dumps(said, default=str))
    return 1 if list(violations(said)) else 0


if __name__ == "__main__":
    sys.exit(main())
