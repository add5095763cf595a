"""The broker's security in Faust's words."""

from __future__ import annotations

from typing import Any

import faust

from aos.streams.shell.options import Options


def credentials(options: Options) -> Any:
    """What a Faust app gets as `broker_credentials`; None in the clear."""
    security = options.security
    context = security.context() if security.tls else None
    if security.sasl:
        return faust.SASLCredentials(
            username=security.username,
            password=security.password,
            ssl_context=context,
            mechanism=security.mechanism,
        )
    return faust.SSLCredentials(context) if context is not None else None
