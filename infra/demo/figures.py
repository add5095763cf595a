"""Every figure of the demo as one SQL query, and the page docs/demo.md (`make golden` writes it)."""

from __future__ import annotations

from typing import Any

from aos.infra.database import query

DOMAIN = "demo"
SAMPLE = "sample"
HERE = f"domain = 'default/{DOMAIN}'"
_SAMPLES = f"""(SELECT split_part(a.id, '-', 3) AS piece, a.agent, avg(coalesce(t.score, 0)) AS score
    FROM aos.attempts a JOIN aos.tasks t USING (requested_at, request_id, round)
    WHERE a.domain = 'default/{SAMPLE}' AND a.step_name = 'compress' GROUP BY 1, 2) sample"""


def _quantile(share: float) -> str:
    return (
        f"SELECT percentile_cont({share}) WITHIN GROUP (ORDER BY latency_us) / 1000 "
        f"FROM aos.tasks WHERE {HERE}"
    )


# name -> (meaning, query with one row and one column)
FIGURES: dict[str, tuple[str, str]] = {
    "tasks": ("Requests that were acknowledged and reached SQL", f"SELECT count(*) FROM aos.requests WHERE {HERE}"),
    "results": (
        "Requests that ended",
        f"SELECT count(*) FROM aos.tasks WHERE {HERE} AND status <> 'open'",
    ),
    "lost": ("Requests without a final result", f"SELECT count(*) FROM aos.unfinished WHERE {HERE}"),
    "duplicated": ("Requests with more than one final row", "SELECT count(*) FROM aos.doubled"),
    "p50_ms": ("Median time from request to result", _quantile(0.5)),
    "p95_ms": ("95th percentile of it", _quantile(0.95)),
    "p99_ms": ("99th percentile of it", _quantile(0.99)),
    "tasks_per_s": (
        "Requests a second, first request to last result",
        "SELECT count(*) / greatest(extract(epoch FROM max(finished_at) - min(requested_at)), 0.001) "
        f"FROM aos.tasks WHERE {HERE}",
    ),
    "score_learned": (
        "Mean score where AOS chose by what it had learned; failed requests count 0",
        f"SELECT avg(coalesce(score, 0)) FROM aos.tasks WHERE {HERE} AND policy = 'learned'",
    ),
    "score_round_robin": (
        "Mean score of the control arm",
        f"SELECT avg(coalesce(score, 0)) FROM aos.tasks WHERE {HERE} AND policy = 'round-robin'",
    ),
    "score_sample_mean": (
        "Mean score over the sample of all compressors: what a choice without knowledge gets there",
        f"SELECT avg(score) FROM {_SAMPLES}",
    ),
    "score_best_single": (
        "Mean score of the compressor that was best on the sample all of them ran",
        f"SELECT max(mean) FROM (SELECT avg(score) AS mean FROM {_SAMPLES} GROUP BY agent) agents",
    ),
    "score_oracle_sample": (
        "Mean over the sample of the best compressor's score for each piece",
        f"SELECT avg(best) FROM (SELECT max(score) AS best FROM {_SAMPLES} GROUP BY piece) pieces",
    ),
    "sql_rows": (
        "Rows the demo left in the four task tables",
        "SELECT (SELECT count(*) FROM aos.requests) + (SELECT count(*) FROM aos.attempts) "
        "+ (SELECT count(*) FROM aos.decisions) + (SELECT count(*) FROM aos.tasks WHERE status <> 'open')",
    ),
}  # fmt: skip


def figure(url: str, name: str) -> float:
    """One figure; NaN has no place in JSON, so nothing to average is 0."""
    value: Any = query(url, FIGURES[name][1])[1][0][0]
    return 0.0 if value is None else float(value)


def figures(url: str) -> dict[str, float]:
    """All of them; counts are whole numbers."""
    counts = ("tasks", "results", "lost", "duplicated", "sql_rows")
    found = {name: figure(url, name) for name in FIGURES}
    return {name: int(value) if name in counts else round(value, 4) for name, value in found.items()}


def page() -> str:
    """docs/demo.md."""
    lines = [PAGE]
    for name, (meaning, sql) in FIGURES.items():
        lines += [f"### {name}", "", f"{meaning}.", "", "```sql", sql, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


PAGE = f"""# The demo

<!-- made by `make golden` from infra/demo/figures.py; do not edit -->

`make demo` starts everything on this machine and sends 3,000 requests (`make demo ARGS="--tasks 1000 --seed
7"`): *make this file as small as you can within your CPU budget and prove that it can be restored.* Each is
a workflow of three steps: inspect, compress, verify; verify judges compress. Files are real ones (of large
ones a piece of at most 30,000 bytes), drawn evenly by kind and size from Python's own tree (`--files` names
another folder); the budget is drawn from 1 to 100 ms of CPU. What a client says of its kind is only how
much time there is for each byte (tight, fair, ample). A dozen compressors, two inspectors and two verifiers
in four processes do the work, reached through Kafka only. **Score** of a request: the fraction of bytes
saved if the file was restored exactly and the compressor kept within the budget, else 0.

- One request in ten goes round robin: the control arm. `--no-learn` runs all without learning; the gain
  must vanish.
- After a third a worker is killed with SIGKILL. Half-way two popular compressors go bad inside, drawn by
  the seed: one becomes slow, one damages its output; what they say of themselves stays healthy.
- Before all that up to 60 pieces go through every compressor: what the best single one and an oracle would
  get is known from these only, so compare the arms with each other, and best single and oracle with the
  mean of the same sample.

## Figures

With `--json` the demo prints one object. These are queries over its requests (domain `default/{DOMAIN}`,
the sample in `default/{SAMPLE}`), as they stand in the database while it runs; to `lost` those are added
that were acknowledged and never reached SQL. The others are what the demo saw itself: `recovery_s` (kill to
the next result), the learned arm's score before and after the disturbance, and for each of the two
(`disturbed`) its share of its kind's work before, in the first 50 after, and after 150.
"""
