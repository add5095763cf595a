"""``make chaos ARGS="--suite kill --seed 1 --tasks 10000 --json"``: load, faults, quiet, and the judge's verdict.

Exit code 0: every invariant held and every fault of the suite ran. 1: one was violated. 3: a fault was not run (with
--allow-missing that is no failure; the table says so all the same).
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from aos.infra.local.host import Host
from tests.chaos import faults, page, report
from tests.chaos.observe import disk_bytes
from tests.chaos.schedule import KILLS, Slot, schedule
from tests.chaos.stand import ROOT, SECRET, Stand

DRAIN_S = 1200.0  # whatever comes
PATIENCE_S = 60.0
CALM_S = 6.0  # without a new row: what is learned is published by then
JUDGE_S = 600.0
AGENTS_S = 30.0
CATCH_UP_S = 3.0  # until clients have sent what they could not send while something was away


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = arguments()
    registry = faults.load_all()
    numbers = chosen_faults(chosen)
    not_run = {number: why for number in numbers if (why := registry[number].missing()) is not None}
    possible = [number for number in numbers if number not in not_run]
    slots = schedule(chosen.seed, possible, least_kills=KILLS if chosen.suite == "kill" else 0)
    if chosen.plan:
        print(json.dumps([slot.as_dict() for slot in slots]))
        return 0
    folder = Path(chosen.folder) if chosen.folder else Host.current().temporary_folder()
    try:
        whole = play(chosen, folder, slots, not_run)
    finally:
        if not chosen.folder:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(whole, default=str) if chosen.json else report.text(whole))
    if chosen.report:
        page.add(Path(chosen.report), [json.loads(json.dumps(whole, default=str))])
    if not all(item["held"] for item in whole["invariants"].values()):
        return 1
    return 3 if not_run and not chosen.allow_missing else 0


def chosen_faults(chosen: argparse.Namespace) -> list[int]:
    """The numbers that were named, a fault as often as it is named, else those of the suite."""
    if chosen.faults == "none":
        return []
    return [int(one) for one in chosen.faults.split(",")] if chosen.faults else faults.of_suite(chosen.suite)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--suite", default="quick", help=", ".join([*faults.SUITES, "quick", "all"]))
    parser.add_argument("--faults", default="", help="numbers instead of a suite, comma separated, or none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tasks", type=int, default=10_000, help="at least so many; it goes on while faults do"
    )
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--allow-missing", action="store_true", help="a fault that cannot be injected is no failure"
    )
    parser.add_argument("--folder", default="", help="keep the run's files here")
    parser.add_argument("--bug", default="", help="run workers with this planted bug (tests.chaos.bugs)")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="longest wait for a new row, s")
    parser.add_argument(
        "--naive", action="store_true", help="a naive Faust app in place of the workers: must fail"
    )
    parser.add_argument("--report", default="", help="add the run to this page, such as docs/chaos-report.md")
    parser.add_argument("--plan", action="store_true", help="print the schedule and end")
    return parser.parse_args()


def stand_for(chosen: argparse.Namespace, folder: Path, slots: list[Slot]) -> Stand:
    """The stand these faults need."""
    needs = {need for slot in slots for need in faults.REGISTRY[slot.number].needs}
    how: dict[str, Any] = {need: need in needs for need in ("links", "secure")}
    how |= {"services": ("one", "two"), "discount": 1.0}
    if chosen.bug:
        how["worker_program"] = (sys.executable, "-m", "tests.chaos.buggy_worker", "--bug", chosen.bug)
    if chosen.naive:
        how["worker_program"] = (sys.executable, "-m", "tests.chaos.naive")
    return Stand(folder, **how)


def play(
    chosen: argparse.Namespace, folder: Path, slots: list[Slot], not_run: dict[int, str]
) -> dict[str, Any]:
    """One run: the stand, the load, the faults one after the other, quiet, the judge."""
    with stand_for(chosen, folder, slots) as stand:
        if not chosen.naive:
            wait_agents(stand)
        start_load(stand, chosen)
        ran = [hit(stand, slot) for slot in slots]
        (folder / "enough").touch()
        wait_load(stand, chosen)
        wait_quiet(stand, chosen.patience)
        return {**report.whole(judge(stand), chosen.seed, ran, not_run), **repeated(chosen)}


def repeated(chosen: argparse.Namespace) -> dict[str, str]:
    """When it was, and the command that does it again."""
    what = f"--faults {chosen.faults}" if chosen.faults else f"--suite {chosen.suite}"
    arguments = f"{what} --seed {chosen.seed} --tasks {chosen.tasks} --rate {chosen.rate:g}"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return {"at": now, "command": f'make chaos ARGS="{arguments}"'}


def wait_agents(stand: Stand) -> None:
    """Until every service can be given work."""
    ends = time.monotonic() + AGENTS_S
    while len([name for name in stand.services if stand.in_hand.ends(f"service-{name}")]) < len(
        stand.services
    ):
        if time.monotonic() > ends:
            raise RuntimeError("no agent registered")
        time.sleep(0.2)


def start_load(stand: Stand, chosen: argparse.Namespace) -> None:
    """The load as a process of its own, on its own link."""
    seen = stand.settings_by_link("load")
    argv = [sys.executable, "-m", "tests.chaos.load", "--bootstrap", seen.bootstrap, "--prefix", seen.prefix]
    argv += ["--tenants", ",".join(seen.tenants), "--tasks", str(chosen.tasks), "--rate", str(chosen.rate)]
    argv += ["--seed", str(chosen.seed), "--journal", str(stand.folder / "journal-load.ndjson")]
    argv += ["--until", str(stand.folder / "enough")]
    stand.children.spawn("load", argv, cwd=ROOT, log_path=stand.folder / "load.log")


def hit(stand: Stand, slot: Slot) -> dict[str, Any]:
    """Inject one fault; its note."""
    fault = faults.REGISTRY[slot.number]
    time.sleep(slot.pause_s)
    stand.note("fault-begins", number=slot.number, seed=slot.seed)
    injected = fault.inject(stand, Random(slot.seed))
    stand.wait_ready()
    if injected.outage:
        time.sleep(CATCH_UP_S)
    stand.wait_calm()  # one fault after the other: that of two at once is a fault of its own
    said = {"number": slot.number, "name": fault.name, **asdict(injected)}
    stand.note("fault", **said)
    print(f"{slot.number:>2} {fault.name}: {injected.target} {injected.detail}", file=sys.stderr, flush=True)
    return said


def wait_load(stand: Stand, chosen: argparse.Namespace) -> None:
    """Until the load has sent all and heard of all."""
    code = stand.children.wait("load", chosen.tasks / chosen.rate * 2 + 300)
    if code != 0:
        tail = stand.folder.joinpath("load.log").read_text()[-500:]
        raise RuntimeError(f"the load ended with {code}: {tail}")
    stand.note("load-over")


def wait_quiet(stand: Stand, patience_s: float) -> None:
    """Until nothing is unfinished in SQL and no row has come for a while, or the limit is over: then the judge sees."""
    query = (
        "SELECT (SELECT count(*) FROM aos.unfinished), (SELECT count(*) FROM aos_data.attempt), "
        "(SELECT count(*) FROM aos_data.result), (SELECT count(*) FROM aos_data.decision)"
    )
    ends, before, since = time.monotonic() + DRAIN_S, None, time.monotonic()
    while time.monotonic() < min(ends, since + patience_s):
        with psycopg.connect(stand.settings.database_url, autocommit=True) as link:
            row = link.execute(query.encode()).fetchone()
        assert row is not None
        if row != before:
            before, since = row, time.monotonic()
        if row[0] == 0 and time.monotonic() - since > CALM_S:
            break
        time.sleep(0.5)
    stand.note("disk", bytes=disk_bytes(stand.folder))
    stand.note("quiet", rows=before)


def judge(stand: Stand) -> dict[str, Any]:
    """The verdict of the judge's own process."""
    secrets = stand.folder / "secrets"
    secrets.write_text(SECRET)
    argv = [sys.executable, "-X", "faulthandler", "-m", "tests.chaos.judge", "--folder", str(stand.folder)]
    argv += ["--bootstrap", stand.settings.bootstrap, "--database-url", stand.settings.database_url]
    argv += ["--prefix", stand.settings.prefix, "--secrets-file", str(secrets)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=JUDGE_S, check=False)
    if not done.stdout.startswith("{"):
        raise RuntimeError(f"the judge said nothing and ended with {done.returncode}: {done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


if __name__ == "__main__":
    sys.exit(main())
