"""``make golden``: write every generated page anew, to be reviewed as code."""

from pathlib import Path

from aos.codecs import render
from aos.infra import cookbook, reference
from aos.infra.demo import figures
from aos.streams import describe

DOCS = Path(__file__).resolve().parents[2] / "docs"

if __name__ == "__main__":
    render.main()
    reference.write()
    (DOCS / "sql.md").write_text(cookbook.render())
    (DOCS / "demo.md").write_text(figures.page())
    describe.PAGE.write_text(describe.page())
