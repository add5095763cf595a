"""Why a server would not have us, in a sentence: its certificate, our user, a right that we lack.

A client of Kafka says only that it found nobody. So when one failed, the way in is tried once more, to see what is
wrong: nothing of this runs while all is well.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)

from aos.codecs.errors import SettingsError

LOOK_S = 5.0
LOGIN = ("security_protocol", "ssl_context", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password")
LACKS_RIGHT = (TopicAuthorizationFailedError, GroupAuthorizationFailedError, ClusterAuthorizationFailedError)
# X509_V_ERR_… of OpenSSL
NOT_YET, EXPIRED, OTHER_NAME, OTHER_ADDRESS = 9, 10, 62, 64
UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)


def refusal(error: BaseException, client: Mapping[str, Any]) -> SettingsError | None:
    """The reason behind an error of a Kafka client with these arguments, if it is one of security; blocks."""
    bootstrap, user = client["bootstrap_servers"], client.get("sasl_plain_username", "")
    if isinstance(error, SaslAuthenticationFailed):
        said = f"the user {user!r} was not accepted at {bootstrap}: there is no such user, or it has another password"
        return SettingsError("AOS5011", said, "see the user's password file; `aos up --secure` makes users for those "
                             "that AOS_TENANTS and AOS_SERVICES name")  # fmt: skip
    if isinstance(error, LACKS_RIGHT):
        return SettingsError(
            "AOS5015",
            f"{user or 'a client without user'} at {bootstrap}: {type(error).__name__} {error}".strip(),
        )
    if (
        isinstance(error, KafkaConnectionError)
        and client.get("security_protocol", "PLAINTEXT") != "PLAINTEXT"
    ):
        found = [_looked_at(server.strip(), client) for server in bootstrap.split(",")]
        return next((each for each in found if each is not None), None)
    return None


def _looked_at(server: str, client: Mapping[str, Any]) -> SettingsError | None:
    """First TLS, then the user."""
    context = client.get("ssl_context")
    wrong = handshake(server, context) if context is not None else None
    if wrong is not None or not client.get("sasl_mechanism"):
        return wrong
    try:
        asyncio.run(_log_in(server, client))
    except SaslAuthenticationFailed as error:
        return refusal(error, client)
    except (KafkaError, OSError, TimeoutError):
        return None
    return None


async def _log_in(server: str, client: Mapping[str, Any]) -> None:
    host, _, port = server.rpartition(":")
    how = {name: client[name] for name in LOGIN if name in client}
    connection = AIOKafkaConnection(host.strip("[]"), int(port), request_timeout_ms=int(LOOK_S * 1e3), **how)
    try:
        await connection.connect()
    finally:
        connection.close()
        await asyncio.sleep(0)  # the socket is closed in the loop's next turn


def handshake(server: str, context: ssl.SSLContext) -> SettingsError | None:
    """What is wrong with a server's TLS; None when nothing is, or nobody answers."""
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        with (
            socket.create_connection((host, int(port)), LOOK_S) as link,
            context.wrap_socket(link, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return SettingsError("AOS5011", *_of_certificate(server, error))
    except ssl.SSLError as error:
        return SettingsError("AOS5011", f"{server} does not speak TLS with us: {error.reason or error}",
                             "is it the port for TLS, and does it want a client certificate?")  # fmt: skip
    except (OSError, ValueError):
        return None


def _of_certificate(server: str, error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    whose = f"the certificate of {server}"
    if error.verify_code == EXPIRED:
        return f"{whose} has expired", "renew it there; a local stack does so when it starts"
    if error.verify_code == NOT_YET:
        return f"{whose} is not valid yet", "compare the clocks of the two machines"
    if error.verify_code in (OTHER_NAME, OTHER_ADDRESS):
        return f"{whose} is for another host", "use a name that stands in it, or have that name put into it"
    if error.verify_code in UNKNOWN_AUTHORITY:
        return (
            f"{whose} is from an authority that is not trusted here",
            "name the file of its authority (AOS_KAFKA_CA_FILE); if that was changed, take the new one",
        )
    return f"{whose} was not accepted: {error.verify_message}", ""
