"""Seals: a file that holds the SHA-256 of its own bytes, so that a change of any of them is found when it is read.

The digest is taken with zeros in its own place. It is no signature: who changes a file on purpose can seal it anew.
Files of before there were seals have none, and are read unverified.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from ..errors import UserError

NAME: Final = "seal"
BLANK: Final = "0" * 64
"""What stands in a seal's place when it is made."""

# at the top of an indented JSON file, or in the JSON text that is the metadata of a file of tensors; never deeper
_SEAL: Final = re.compile(rb'^ "seal": "([0-9a-f]{64})"|\\"seal\\":\\"([0-9a-f]{64})\\"', re.MULTILINE)
_LATER: Final = re.compile(rb'^ "format": [3-9]|\\"format\\":[3-9]', re.MULTILINE)


def seal(content: bytes) -> bytes:
    """The content of a file, which holds a :data:`BLANK` seal, with its digest in place of that."""
    found = _SEAL.search(content)
    assert found is not None
    start, end = found.span(found.lastindex or 0)
    assert content[start:end] == BLANK.encode()
    return content[:start] + hashlib.sha256(content).hexdigest().encode() + content[end:]


def check(content: bytes, path: Path) -> bool:
    """Whether a file is sealed: False for one of before there were seals.

    Raises:
        UserError: It is not what was sealed; the message names it.
    """
    found = _SEAL.search(content)
    if found is None:
        if _LATER.search(content):
            raise UserError(f"{path} is damaged (it has lost its seal)")
        return False
    start, end = found.span(found.lastindex or 0)
    digest = hashlib.sha256(content[:start])
    digest.update(BLANK.encode() + content[end:])
    if digest.hexdigest().encode() != content[start:end]:
        raise UserError(f"{path} is damaged (its bytes are not those that were sealed)")
    return True


def in_place(said: str, path: Path, name: str) -> None:
    """Raise where a record says that it belongs elsewhere; "" says nothing.

    Raises:
        UserError: It does; the message names it.
    """
    if said and said != name:
        raise UserError(f"{path} is damaged (it is that of {said})")
