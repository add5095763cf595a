"""What releases and settings of different age must hold: pure functions, evidence in. Nothing of AOS is imported."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from tests.chaos.judge_read import Evidence, rows_of

VERSIONS = 1 << 20  # a decision's number modulo this counts the changes of settings that it was made under
LEDGER_OWNER = "supervise"


def parked(evidence: Evidence) -> set[tuple[str, str]]:
    """Requests whose row in the ledger its owner could not read and kept as a dead letter: that is their end."""
    found: set[tuple[str, str]] = set()
    for letter in evidence.rows("aos.dead-letters"):
        if letter["topic"] != "aos.ledger" or letter["processor"] != LEDGER_OWNER:
            continue
        if evidence.poison_in(letter):
            continue  # bytes made to end who reads them; no request of ours is in them
        try:
            rows = rows_of(letter["body"] or b"", ("tenant", "id", "kind"))
        except (pa.ArrowException, ValueError, OSError):
            continue  # cut off in the letter: whose it was is not known, and those requests count as lost
        found |= {
            (row["tenant"], row["id"] or "") for row in rows if row["kind"] in ("requested", "rejected")
        }
    return found & set(evidence.sent)


def settings_existed(evidence: Evidence) -> Iterator[str]:
    """Every decision names a version of the settings that was there before it: of the changes on the topic, in its
    order, those count that are one more than the last that counted."""
    made: dict[int, float] = {0: float("-inf")}
    for row in evidence.rows("aos.settings"):
        if row["version"] == len(made):
            made[row["version"]] = row["_at"]
    for row in evidence.rows("aos.decisions"):
        if row["kind"] != "assigned":
            continue
        number = row["settings_version"]
        if number is None:
            yield f"decision {row['request_id'].hex()} names no version of the settings"
        elif made.get(number % VERSIONS, float("inf")) > row["_at"]:
            yield f"decision {row['request_id'].hex()} was made under version {number % VERSIONS}, not there then"
