"""`python -m benchmarks [QUESTION …] [--quick] [--json]`: measure and append to benchmarks/history.ndjson."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from aos.codecs.errors import AosError
from aos.infra.settings import load
from benchmarks.harness import HISTORY, Figure, facts, record, say

QUESTIONS = {
    "processor": "one processor in and out, beside plain Faust, Quix Streams, aiokafka and confluent-kafka",
    "steps": "what a request costs each processor, without broker and shell",
    "pipeline": "the whole pipeline with 1,000 no-op agents: latency by rate, the highest rate held, what is full",
}


def main() -> int:
    """Ask the questions, print and keep the figures."""
    chosen = parsed()
    known = facts(chosen.note)
    say(f"{known['machine']}, {known['cores']} cores, commit {known['commit']}, load {known['load_before']}")
    if known["load_before"] > 0.5:
        say("other programs are at work on this machine: the figures will be theirs too")
    try:
        for question in chosen.questions or QUESTIONS:
            say(f"\n{question}: {QUESTIONS[question]}")
            for figure in ask(question, chosen):
                (line,) = record([figure], known) if chosen.keep else [figure.line(known)]
                print(json.dumps(line) if chosen.json else _row(figure), flush=True)
    except AosError as error:
        say(f"benchmarks: {error}\n  {error.hint}")
        return 2
    except KeyboardInterrupt:
        return 130
    if chosen.keep:
        say(f"\nappended to {HISTORY}")
    return 0


def ask(question: str, chosen: argparse.Namespace) -> Iterator[Figure]:
    """The figures of a question, each as soon as it is known."""
    settings = load()
    if question == "processor":
        from benchmarks.processor import run

        yield from run.measure(chosen.quick, settings.bootstrap or None, chosen.systems, chosen.repeats)
    elif question == "steps":
        from aos.streams.shell.worker import tune
        from benchmarks.steps import run as steps

        tune()  # as in a worker: the collector looks seldom
        waves = chosen.waves or (3 if chosen.quick else 12)
        for rows in (1, min(128, chosen.wave)):
            yield from steps.measure(rows, chosen.wave, waves, chosen.agents)
    else:
        from benchmarks.pipeline import run as pipeline

        yield from pipeline.measure(settings, pipeline.Plan.of(chosen))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="AOS_BOOTSTRAP and AOS_DATABASE_URL name given servers; without them a private local stack is started.",
    )
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)} (default: all)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small and short: does it work, not how fast is it"
    )
    parser.add_argument("--json", action="store_true", help="print the lines of the history on stdout")
    parser.add_argument("--note", default="", help="a remark to keep with the figures")
    parser.add_argument("--no-keep", dest="keep", action="store_false", help="do not append to the history")
    one = parser.add_argument_group("processor")
    one.add_argument("--systems", type=_words, default=[], help="only these, comma separated")
    one.add_argument("--repeats", type=int, help="runs of each system (default 3; 1 with --quick)")
    two = parser.add_argument_group("pipeline")
    two.add_argument("--rates", type=_numbers, default=[], help="requests/s, comma separated, rising")
    two.add_argument("--seconds", type=float, help="length of each rate (default 60; 5 with --quick)")
    two.add_argument("--partitions", type=int, help="of the task topics (default: the settings')")
    two.add_argument("--rows-max", type=int, default=128, help="most rows a message above --single-up-to")
    two.add_argument(
        "--single-up-to", type=float, default=1_000.0, help="requests/s that come one row a message (1000)"
    )
    two.add_argument("--go-on", action="store_true", help="try higher rates after one that was not held")
    three = parser.add_argument_group("steps")
    three.add_argument("--wave", type=int, default=512, help="requests that come at once (default 512)")
    three.add_argument("--waves", type=int, help="how often (default 12; 3 with --quick)")
    three.add_argument("--agents", type=int, default=1_000, help="agents that are there (default 1000)")
    chosen = parser.parse_args()
    for question in chosen.questions:
        if question not in QUESTIONS:
            parser.error(f"no question {question!r}; choose from {', '.join(QUESTIONS)}")
    return chosen


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[float]:
    return [float(word.replace("_", "")) for word in _words(text)]


def _row(figure: Figure) -> str:
    spread = f" ± {figure.spread / 2:,.0f}" if len(figure.values) > 1 else ""
    return f"{figure.workload:32s} {figure.metric:28s} {figure.value:12,.1f}{spread} {figure.unit}"


if __name__ == "__main__":
    sys.exit(main())
