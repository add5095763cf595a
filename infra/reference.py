"""docs/settings.md and docs/cli.md out of the declarations. `python -m aos.infra.reference` rewrites them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from aos.codecs.settings import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
MADE = "<!-- made by `python -m aos.infra.reference`; do not edit -->"
WIDTH = 100  # of a help text in the page


def settings_page() -> str:
    """Every setting with its environment name, default, range and meaning."""
    lines = [
        "# Settings",
        "",
        MADE,
        "",
        "A flag beats the environment beats `aos.toml` in the working folder (or",
    ]
    lines += ["the file AOS_SETTINGS_FILE names) beats the default. An unknown name is refused.", ""]
    lines += [
        "Settings with a mark under *v* decide who does what, when, and what is learned: `settings_version` of a",
        "decision is crc32 of their values times 2^20, plus the version of the run-time settings (0 while none was",
        "ever set). Two decisions with the same number were made under the same settings.",
        "",
        "Settings with a word under *run time* can be changed while AOS runs, with `aos config`: for *all*, or for",
        "one *tenant* too. They are in force within 10 s, without a restart, and stay in force after one. Only such",
        "settings can be changed that no fold reads ([ARCHITECTURE.md](../ARCHITECTURE.md)); the others are refused.",
        "",
        "| setting | environment | default | range | v | run time | meaning |",
        "|---|---|---|---|---|---|---|",
    ]
    defaults = Settings()
    for field in dataclasses.fields(Settings):
        meta = field.metadata
        meaning = meta["doc"] + (f" [{meta['unit']}]" if meta["unit"] else "")
        default = _shown(getattr(defaults, field.name))
        mark = "•" if meta["decides"] else ""
        cells = (
            field.name,
            f"`AOS_{field.name.upper()}`",
            default,
            _range(meta),
            mark,
            meta["live"],
            meaning,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value in ("", {}) else str(value)


def _range(meta: Any) -> str:
    low, high = meta["low"], meta["high"]
    if low is None and high is None:
        return ""
    return f"{'' if low is None else low} … {'' if high is None else high}"


def cli_page() -> str:
    """Every command with its help."""
    from aos.infra.cli import app

    lines = [
        "# Commands",
        "",
        MADE,
        "",
        "Data goes to stdout, everything else to stderr. Exit codes: 0 good, 1 the answer is no,",
    ]
    lines += ["2 wrong use or an error that is named. `-o json` gives JSON."]
    for path in [(), *_paths(app)]:
        lines += ["", f"## {' '.join(('aos', *path))}", "", "```text", _help(path), "```"]
    return "\n".join(lines) + "\n"


def _paths(app: Any) -> list[tuple[str, ...]]:
    """Names of all commands, groups' commands after their group."""
    found: list[tuple[str, ...]] = []
    for command in app.registered_commands:
        found.append((command.name or command.callback.__name__,))
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            found.append((group.name, command.name or command.callback.__name__))
    return sorted(found)


def _help(path: tuple[str, ...]) -> str:
    from typer.testing import CliRunner

    from aos.infra.cli import app

    runner = CliRunner(env={"COLUMNS": str(WIDTH), "TERM": "dumb", "NO_COLOR": "1"})
    shown = runner.invoke(app, [*path, "--help"], prog_name="aos")
    return "\n".join(line.rstrip() for line in shown.output.strip("\n").splitlines())


def write() -> None:
    """Write both pages."""
    (DOCS / "settings.md").write_text(settings_page())
    (DOCS / "cli.md").write_text(cli_page())


if __name__ == "__main__":
    write()
