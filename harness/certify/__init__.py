"""Certificates: what provably stands, whatever attack comes (:mod:`.bounds`). ``docs/certificates.md``."""

from __future__ import annotations

from typing import Any

__all__ = ["Certificate", "Network", "certify", "prepare"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import bounds

        return getattr(bounds, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
