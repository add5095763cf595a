"""Makes the local broker secure, as the stack itself: topics, a user for everybody, exactly the rights of the plan."""

from __future__ import annotations

import asyncio
import dataclasses

from aos.agents.sdk.security import Security
from aos.codecs.settings import Settings
from aos.infra.local.kafka import STACK_NAME, Broker
from aos.infra.runtime import make_topics
from aos.infra.security.certificates import Ca
from aos.infra.security.grants import grant, passwords
from aos.infra.security.rights import OPERATOR, plan, users

USERS = "users"


def secure_broker(settings: Settings, broker: Broker, ca: Ca) -> Settings:
    """Provision it; the settings with which everybody else speaks to it: as a user, over TLS."""
    stack = stack_security(ca)
    make_topics(settings, (broker.inner, stack))
    folder = ca.folder / USERS
    asyncio.run(grant(stack.clients(broker.inner), passwords(folder, users(settings)), plan(settings)))
    return dataclasses.replace(
        settings,
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        kafka_username=settings.prefix + OPERATOR,
        kafka_password="",
        kafka_password_file="",
        kafka_users_dir=str(folder),
        kafka_ca_file=str(ca.bundle),
    )


def stack_security(ca: Ca) -> Security:
    """How the stack itself, which may everything, speaks to its broker: by `Broker.inner`, with a certificate."""
    cert, key = ca.issue(STACK_NAME, client=True)
    return Security("SSL", ca_file=str(ca.bundle), cert_file=str(cert), key_file=str(key))
