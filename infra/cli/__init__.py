"""The command line: thin commands over topics and SQL. Data goes to stdout, everything else to stderr.

Each module holds a few commands and imports what they need inside them, so that ``aos --help`` stays quick.
"""

from __future__ import annotations

import sys

import typer

from aos.codecs.errors import AosError
from aos.infra.cli import config, dead_letters, look, processors, run, tenants, work

app = typer.Typer(
    name="aos",
    help="Route work to a fleet of agents over Kafka and learn from every outcome.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and the same in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (run, work, look, processors, config, dead_letters, tenants):
    module.add(app)


def main() -> None:
    """Run a command; an error AOS knows is one sentence and a hint."""
    try:
        app()
    except AosError as error:
        _refused(error)
    except Exception as error:
        known = _reason(error)
        if known is None:
            raise
        _refused(known)


def _refused(error: AosError) -> None:
    print(f"aos: {error}\n  {error.hint}", file=sys.stderr)
    sys.exit(2)


def _reason(error: Exception) -> AosError | None:
    """What of security is behind an error of a Kafka client; nothing of it is imported while all is well."""
    if not type(error).__module__.startswith("aiokafka"):
        return None
    from aos.agents.sdk.refusals import refusal
    from aos.infra.cli.context import found
    from aos.infra.security.connections import clients

    settings = found()
    return None if settings is None else refusal(error, clients(settings))
