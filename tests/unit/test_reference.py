"""The generated pages say what the code says: `make golden` writes them."""

from pathlib import Path

from aos.infra import cookbook, reference
from aos.infra.demo import figures
from aos.streams import describe

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_topology_page_is_the_topology() -> None:
    assert describe.PAGE.read_text() == describe.page()


def test_the_settings_page_is_the_settings() -> None:
    assert (DOCS / "settings.md").read_text() == reference.settings_page()


def test_the_command_page_is_the_commands() -> None:
    assert (DOCS / "cli.md").read_text() == reference.cli_page()


def test_the_sql_page_is_the_surface() -> None:
    assert (DOCS / "sql.md").read_text() == cookbook.render()


def test_the_demo_s_page_has_every_figure_as_its_query() -> None:
    assert (DOCS / "demo.md").read_text() == figures.page()


def test_a_batch_costs_at_most_the_budgeted_messages() -> None:
    assert len(describe.WAY) <= describe.HOPS_MAX
