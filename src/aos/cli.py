"""The command ``aos``; everything behind it is in `aos.infra.cli`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from aos.infra.cli import main as run

    run()
