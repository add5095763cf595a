"""`aos replay log`: a stretch of a processor's log played in its shadow."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.infra.cli.output import Form, emit_one, plain

if TYPE_CHECKING:
    from aos.codecs.settings import Settings

TIME = "30m, 2h, 1d ago, or a time in ISO 8601; the broker's append time."


def replay_log(
    processor: Annotated[str, typer.Argument(help="Name of the processor.")],
    begin: Annotated[str, typer.Option("--from", help=TIME)],
    end: Annotated[str | None, typer.Option("--to", help=TIME + " Now, if nothing is said.")] = None,
    partition: Annotated[list[int] | None, typer.Option(help="Only this partition; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the rows here, one JSON object a line.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Play what a processor read in that time again, in its shadow: nothing is written, nothing is committed.

    Tells what it would write, and whether every row of that was written (`equal`; of processors whose law promises it).
    Use the workers' settings. Exit code 1 when rows that were promised are missing, or a step failed.

    Example: aos replay log supervise --from 30m --out rows.ndjson
    """
    from aos.infra.cli.context import required
    from aos.infra.letters import since
    from aos.infra.shadow import Stretch, replay

    now = datetime.datetime.now(datetime.UTC)
    stretch = Stretch(
        processor, since(begin, now), now if end is None else since(end, now), tuple(partition or ())
    )
    with ExitStack() as files:
        lines = files.enter_context(out.open("w")) if out is not None else None

        def say(row: dict[str, Any]) -> None:
            if lines is not None:
                lines.write(json.dumps(plain(row)) + "\n")

        report = asyncio.run(replay(_with_secret(required()), stretch, say))
    emit_one(dataclasses.asdict(report), Form.json if as_json else Form.text)
    if report.equal is False or report.failed:
        raise typer.Exit(1)


def _with_secret(settings: Settings) -> Settings:
    """The key of the tokens of the local stack, if none is set: `aos up` keeps it beside its data."""
    from aos.agents.sdk.connection import running_stack

    stack = running_stack()
    if settings.secret or stack is None or stack["bootstrap"] != settings.bootstrap:
        return settings
    key = Path(stack["data_dir"]) / "secret"
    return dataclasses.replace(settings, secret=key.read_text()) if key.is_file() else settings
