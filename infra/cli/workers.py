"""Commands that run processors: worker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Put this module's commands into the app."""
    app.command("worker")(worker)


def worker(
    processors: Annotated[
        str, typer.Option(help="Names or groups (way, learning, keeping), comma separated.")
    ],
    ordinal: Annotated[
        int, typer.Option(help="Number of this worker among those with the same processors.")
    ] = 0,
    status_file: Annotated[Path | None, typer.Option(help="File that says each second how it is.")] = None,
) -> None:
    """Run some processors in this process, on the servers of the settings.

    Example: AOS_BOOTSTRAP=localhost:9092 aos worker --processors way
    """
    from aos.infra.runtime import work
    from aos.infra.settings import load

    sys.exit(work(load(), processors.split(","), ordinal, status_file))
