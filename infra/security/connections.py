"""How the settings say that Kafka is spoken to, for every client that is made outside the shell."""

from __future__ import annotations

from typing import Any

from aos.agents.sdk.security import NAMES, Security, security_of
from aos.codecs.settings import Settings
from aos.infra.settings import environment


def security(settings: Settings) -> Security:
    """Protocol, user and authorities. SettingsError when they do not fit together."""
    return security_of({name: getattr(settings, name) for name in NAMES})


def surroundings(settings: Settings) -> dict[str, str]:
    """The environment with which a child process speaks to the same Kafka as the same user, prefix included."""
    names = ("bootstrap", "prefix", *NAMES)
    return {name: text for name, text in environment(settings).items() if name[4:].lower() in names}


def clients(settings: Settings) -> dict[str, Any]:
    """The arguments that every aiokafka client of these settings gets, its servers among them."""
    return security(settings).clients(settings.bootstrap)
