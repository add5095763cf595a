"""``make golden``: write every generated page anew, to be reviewed as code."""

from aos.codecs import render
from aos.infra import cookbook, reference
from aos.streams import describe

if __name__ == "__main__":
    render.write()
    reference.write()
    cookbook.write()
    describe.PAGE.write_text(describe.page())
