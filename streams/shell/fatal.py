"""How a worker dies: at once and without a commit, so that the log gives everything again."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from typing import NoReturn

log = logging.getLogger("aos.shell")

BROKEN = 70  # nothing else is left: an output was refused, a processor broke its law, the loop stands still
STUCK = 75  # a stop or revocation waited too long for a running step
REFUSED = 78  # the worker cannot start: settings, topics


def die(code: int, reason: str, error: BaseException | None = None) -> NoReturn:
    """Say why, and leave without any clean-up: a clean exit would commit what was not done."""
    log.critical("%s", reason, exc_info=error)
    if code == STUCK:
        faulthandler.dump_traceback(file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)
