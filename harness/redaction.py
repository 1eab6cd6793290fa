"""Remove passwords from addresses and messages."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, unquote_plus

_LOGIN: Final = re.compile(r"([^:/]*):([^@]*(?:@(?:(?!\?[\w.%-]+=).)*)?)@", re.DOTALL)
"""Name and password before a database's host, as SQLAlchemy reads them: a password may hold any of ``/?#[``."""

_WEB_LOGIN: Final = re.compile(r"([^:/?#]*):([^/?#]*)@(?=[^/?#])")
_WEB_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:/?#]*)(:\d*)?([/?#]|$)")

_SECRET: Final = re.compile(r"pass(word|wd|phrase)|pwd|secret|token|odbc_connect", re.IGNORECASE)
"""Names of settings that are left out of an address."""


def _apart(address: str) -> tuple[str, list[str]]:
    """An address without its passwords, and these. What could be one is taken for one."""
    scheme, mark, rest = address.partition("://")
    if not mark or not re.fullmatch(r"[\w.+-]+", scheme):
        return address, []
    secrets = []
    login = _LOGIN.match(rest)
    if scheme.lower() in ("http", "https"):
        login = _WEB_LOGIN.match(rest) or (None if _WEB_HOST.match(rest) else login)
    if login is not None:
        name, secret = login.groups()
        after = rest[login.end() :]
        rest = f"{name}@{after}"
        secrets.append(secret)
        if any(map(_is_secret, re.split("[?&]", secret))):  # host:port/...?password=p@ss, or a password like that
            rest = name
            secrets.append(after)
    place, mark, query = rest.partition("?")
    settings = query.split("&")
    if hidden := [setting for setting in settings if _is_secret(setting)]:
        secrets += [setting.partition("=")[2] for setting in hidden]
        query = "&".join(setting for setting in settings if setting not in hidden)
        rest = f"{place}?{query}" if query else place
    return f"{scheme}://{rest}", secrets


def _is_secret(setting: str) -> bool:
    name, equals, _ = setting.partition("=")
    return bool(equals and _SECRET.search(unquote_plus(name)))


def without_password(address: str) -> str:
    """An address that may be shown and recorded; anything else comes back as it is."""
    return _apart(address)[0]


def without_password_of(address: str, text: str) -> str:
    """A message about an address, without the passwords that are in it."""
    shown, secrets = _apart(address)
    text = text.replace(address, shown)
    found = {way(secret) for secret in secrets for way in (str, unquote, unquote_plus)}
    found |= {word for secret in found for word in re.findall(r"(?i)(?:pwd|password)\s*=\s*\{?([^;}]+)", secret)}
    for secret in sorted(filter(None, found), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
