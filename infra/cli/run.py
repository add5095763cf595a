"""Commands that run something: up, worker, migrate, topics are made by up; demo, replay, bench."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from aos.infra.cli.output import Form, FormOption, emit_one, note
from aos.infra.cli.shadow import replay_log

WAKE_S = 0.5  # a signal may reach another thread: this one looks now and then


def add(app: typer.Typer) -> None:
    """Put this module's commands into the app."""
    for command in (up, demo, worker, migrate):
        app.command(command.__name__)(command)
    group = typer.Typer(help="Play what was recorded again.", no_args_is_help=True)
    group.callback()(_replay_group)
    group.command("outcomes")(replay_outcomes)
    group.command("log")(replay_log)
    app.add_typer(group, name="replay")


def _replay_group() -> None:
    """Play what was recorded again: outcomes through the pipeline, a log through one processor."""


def up(
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the data here; else it goes with the stack.")
    ] = None,
    secure: Annotated[
        bool | None, typer.Option("--secure", help="TLS, a user for everybody, no right that is not given.")
    ] = None,
) -> None:
    """Run the whole local stack in the foreground until Ctrl-C; nothing is left behind.

    Example: aos up --data-dir ~/aos-data
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _up(data_dir, secure)
    except KeyboardInterrupt:
        note("stopped")


def _up(data_dir: Path | None, secure: bool | None) -> None:
    """Start, tell, wait for Ctrl-C; whatever has been started by then is ended by `Up`."""
    from aos.agents.sdk.connection import run_file
    from aos.infra.security.passwords import shown
    from aos.infra.settings import load
    from aos.infra.up import Up

    note("starting (the first start fetches broker and database, a minute or two) …")
    flags = {"data_dir": str(data_dir) if data_dir else None, "secure": secure}
    with Up(load(flags), announce=True, say=note) as running:
        took = running.stack.start_s.get("stack", 0.0)
        settings = running.settings
        for name, value in (
            ("Kafka", settings.bootstrap),
            ("SQL", shown(settings.database_url)),
            ("Topics", f"{settings.prefix}aos.*"),
            ("Logs", str(running.stack.data_dir)),
            ("Addresses", str(run_file())),
        ):
            print(f"{name:<10} {value}")
        if settings.kafka_users_dir:
            services = ", ".join(settings.services) or "none yet"
            print(f"{'Users':<10} {settings.kafka_users_dir} (services: {services}; AOS_SERVICES names them)")
        print("\nNext, in another terminal:")
        print(
            f"  {_program('python')} -m aos.agents.builtin.compressors verifiers   # a service with two agents"
        )
        print(f"  {_program('aos')} agents list")
        print(f"  {_program('aos')} status")
        sys.stdout.flush()
        note(f"ready (broker and database after {took:.1f} s); Ctrl-C stops everything")
        while True:
            time.sleep(WAKE_S)


def _program(name: str) -> str:
    """How a program of this environment is called from here: by name if the shell would find the same one."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not own.exists() or (
        found and Path(found).resolve() == own.resolve() and Path(found).parent == own.parent
    ):
        return name
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


def demo(
    tasks: Annotated[int, typer.Option(min=60, help="How many files or pieces of files.")] = 3000,
    seed: Annotated[int, typer.Option(help="Draws files, budgets and the disturbance.")] = 1,
    learn: Annotated[
        bool, typer.Option(help="--no-learn: the same without learning; the gain must vanish.")
    ] = True,
    files: Annotated[
        Path | None, typer.Option(help="Folder to take files from; Python's own tree else.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Make real files smaller within a CPU budget, with agents that AOS gets to know.

    Example: aos demo --tasks 1000 --seed 7
    """
    from aos.infra.demo.run import Options, run
    from aos.infra.settings import load

    report = run(load(), Options(tasks, seed, learn, files, quiet=as_json))
    if as_json:
        print(json.dumps(report, indent=2))


def worker(
    processors: Annotated[
        str, typer.Option(help="Names or groups (edge, core, learning, keeping), comma separated.")
    ],
    ordinal: Annotated[
        int, typer.Option(help="Number of this worker among those with the same processors.")
    ] = 0,
    status_file: Annotated[Path | None, typer.Option(help="File that says each second how it is.")] = None,
) -> None:
    """Run some processors in this process, on the servers of the settings.

    Example: AOS_BOOTSTRAP=localhost:9092 aos worker --processors edge
    """
    gc.disable()  # imports make a million objects that stay; `tune` lets the collector go on
    from aos.infra.runtime import work
    from aos.infra.settings import load

    sys.exit(work(load(), processors.split(","), ordinal, status_file))


def migrate(
    roles: Annotated[
        bool,
        typer.Option(
            "--roles", help="Make the database's roles and every tenant's views too; as a superuser."
        ),
    ] = False,
    output: FormOption = Form.text,
) -> None:
    """Make topics and bring the database schema to this release, in one step under a lock.

    Example: AOS_BOOTSTRAP=… AOS_DATABASE_URL=… aos migrate
    """
    from aos.infra.cli.context import required
    from aos.infra.migrate import migrate as bring
    from aos.infra.runtime import make_topics

    settings = required()
    make_topics(settings)
    ran = bring(settings.database_url, tenants=settings.tenants if roles else None)
    emit_one({"migrations": ran}, output)


def replay_outcomes(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet: query, score__<agent> …")],
    kind_column: Annotated[
        str | None, typer.Option(help="Column with the kind of task; none is sent else.")
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Most requests under way at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of --shuffle.")] = 0,
    shuffle: Annotated[bool, typer.Option(help="Play the rows in random order.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many rows.")] = None,
    latency_scale: Annotated[
        float, typer.Option(min=0, help="Share of latency__<agent> (s) really waited.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Play a table of recorded outcomes; only the chosen agent's score is revealed, in a fresh learning domain.

    Example: aos replay outcomes history.parquet --kind-column task_name --shuffle --json
    """
    from aos.infra.cli.context import at_hand
    from aos.infra.replay.play import Options, replay
    from aos.infra.replay.table import outcomes

    outcomes(file)  # a wrong file is told before anything is started
    options = Options(file, kind_column, in_flight, seed, shuffle, limit, latency_scale)
    with at_hand() as settings:
        report = replay(settings, options, note)
    emit_one(report.as_dict(), Form.json if as_json else Form.text)
