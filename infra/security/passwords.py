"""Passwords of the local database: made by chance, kept in libpq's own kind of file, never sent to anybody.

Each role has a file (``host:port:database:role:password``, readable by its owner alone) that a URL names as
`passfile`. A URL of ours so holds no secret: it may stand in a log, a run file, a list of processes. The server gets
verifiers (RFC 5802): no statement, and so no log of one, holds a password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

ROUNDS = (
    4096  # PostgreSQL's own default; our passwords are 256 random bits, which no number of rounds makes safer
)
PASSWORD_BYTES = 32
SALT_BYTES = 16


def verifier(password: str, salt: bytes | None = None) -> str:
    """What PostgreSQL keeps of a password under scram-sha-256. Passwords of ours are ASCII: no SASLprep is needed."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, ROUNDS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server)]
    return f"SCRAM-SHA-256${ROUNDS}:{parts[0]}${parts[1]}:{parts[2]}"


def is_verifier(known: str, password: str) -> bool:
    """Whether `known` was made of this password."""
    salt = base64.b64decode(known.split("$")[1].partition(":")[2])
    return hmac.compare_digest(known, verifier(password, salt))


def new_password() -> str:
    """256 bits in characters that need no quotes anywhere."""
    return secrets.token_urlsafe(PASSWORD_BYTES)


def write_passfile(path: Path, host: str, role: str, password: str) -> None:
    """Whole or not at all, and never readable by others."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{host}:*:*:{role}:{password}\n")
    temporary.replace(path)


def read_password(path: Path) -> str | None:
    """The password of a file that `write_passfile` wrote; None when there is no such file."""
    try:
        return path.read_text().strip().rpartition(":")[2]
    except FileNotFoundError:
        return None


def kept_password(path: Path, host: str, role: str) -> str:
    """The password in a file, made when there is none."""
    found = read_password(path)
    if not found:
        found = new_password()
        write_passfile(path, host, role, found)
    return found


def secure_url(
    host: str, port: int | str, database: str, role: str, authority: Path, passfile: Path | None
) -> str:
    """A URL that checks the server's certificate and name, and takes its password from a file."""
    asked = {"sslmode": "verify-full", "sslrootcert": str(authority)}
    if passfile is not None:
        asked["passfile"] = str(passfile)
    return f"postgresql://{quote(role)}@{host}:{port}/{quote(database)}?{urlencode(asked)}"


def as_role(url: str, role: str) -> str:
    """The same server as another role of the local stack, whose password stands in a file beside the present one's.
    A URL that is not of the local stack is whoever it is: it stays."""
    parts = urlsplit(url)
    asked = dict(parse_qsl(parts.query))
    present = Path(asked.get("passfile", ""))
    if not asked.get("passfile") or present.name != parts.username or not present.with_name(role).exists():
        return url
    asked["passfile"] = str(present.with_name(role))
    return parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}", query=urlencode(asked)).geturl()


def shown(url: str) -> str:
    """A URL for people: with a password it held replaced by stars. What is no URL is not shown at all."""
    try:
        parts = urlsplit(url)
        asked = [(name, "***" if "password" in name else value) for name, value in parse_qsl(parts.query)]
        secret = parts.password is not None
    except ValueError:
        return "***"
    if not parts.scheme or not parts.netloc:
        return "***" if url else ""
    user, _, place = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}:***@{place}" if secret else parts.netloc
    return parts._replace(netloc=netloc, query=urlencode(asked, safe="/*")).geturl()
