"""Ctrl-C, SIGTERM and SIGHUP: the first lets a command tidy up, the second ends it at once.

Nothing is lost either way, because every write is atomic; tidying up ends workers and leaves no half-written file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final, NoReturn

PATIENCE: Final = 8.0
"""Seconds that a command has to tidy up: a library may have swallowed the interruption, or hang."""

SAID: Final = "gauntlet: interrupted; the same command again goes on from here"

SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

STATUSES: Final = tuple(128 + number for number in SIGNALS)
"""Exit statuses after an interruption, as shells have them."""

_first: int | None = None
_tidying = False


def install() -> None:
    """Hear the signals, but for those that this process was started to ignore (``nohup``, ``&`` in a script)."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _hear)
    before = sys.unraisablehook
    # in a destructor or a callback, where Python can only print it
    sys.unraisablehook = lambda what: (
        None if _first is not None and isinstance(what.exc_value, KeyboardInterrupt) else before(what)
    )


def happened() -> bool:
    """Whether there was an interruption: whatever goes wrong from then on is its doing."""
    return _first is not None


def status() -> int:
    """Exit status after an interruption."""
    return 128 + (_first or signal.SIGINT)


@contextlib.contextmanager
def tidied() -> Iterator[None]:
    """Meanwhile the first signal raises KeyboardInterrupt; before and after there is nothing to tidy up."""
    global _tidying
    _tidying = True
    try:
        yield
    finally:
        _tidying = False


def leave(number: int) -> NoReturn:
    """End this process now."""
    with contextlib.suppress(Exception):
        cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress display hides it
        os.write(2, f"{cursor}{SAID}\n".encode())
    os._exit(128 + number)


def _hear(number: int, frame: Any) -> None:
    global _first
    if _first is not None or not _tidying:
        leave(number)
    _first = number
    watch = threading.Timer(PATIENCE, leave, (number,))
    watch.daemon = True
    watch.start()
    raise KeyboardInterrupt
