"""Long trainings are kept between epochs: what was killed goes on from there, to the same weights, bit for bit."""

from __future__ import annotations

import hashlib
import io
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from ..errors import UserError, first_line
from .defense import Diverged

EVERY: Final = 60.0
"""Seconds between two writings: shorter trainings write nothing."""

DEVICES: Final = ("cpu", "cuda")
"""Kinds of devices whose random generators can be kept."""

Write = Callable[[Path, bytes], None]


class Part(Protocol):
    """What has a state that training changes: a network, an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take a state on."""


class Saves:
    """Where a training is kept, and what it has to have been made with to go on.

    Attributes:
        seconds: What processes before this one have spent on the training.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any], write: Write) -> None:
        self._path, self._made_with, self._write = path, dict(made_with), write
        self._begun = self._last = time.monotonic()
        self._given_up = False
        self.seconds = 0.0

    def read(self) -> dict[str, Any] | None:
        """What an earlier process kept, if it was made with the same and is whole."""
        try:
            content = self._path.read_bytes()
            digest, content = content[:32], content[32:]
            if hashlib.sha256(content).digest() != digest:
                return None
            found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return found if found["made_with"] == self._made_with else None
        except Exception:  # whatever is wrong with it, training can begin anew
            return None

    def restore(self, found: Mapping[str, Any], parts: Mapping[str, Part], device: torch.device | str) -> Any:
        """Put all parts and the random generators back to where that process had come.

        Returns:
            What :meth:`keep` was told beside the parts.

        Raises:
            UserError: It does not fit, and is removed: code has changed that no commit tells of.
        """
        try:
            for name, part in parts.items():
                part.load_state_dict(found["parts"][name])
            _restore_generators(found["generators"], device)
            self.seconds = float(found["seconds"])
            return found["also"]
        except Exception as error:
            self.remove()
            raise UserError(
                f"what was kept of a training in {self._path} does not fit ({first_line(error)}), and is removed: "
                "the same command again trains from the start"
            ) from None

    def keep(self, parts: Mapping[str, Part], also: Any, device: torch.device | str) -> None:
        """Write down where training stands after an epoch, if the last time is long ago; ``also``: plain values.

        Where that cannot be done one line on stderr says so, and training goes on without.
        """
        now = time.monotonic()
        if self._given_up or now - self._last < EVERY or torch.device(device).type not in DEVICES:
            return
        try:
            buffer = io.BytesIO()
            state = {
                "made_with": self._made_with,
                "parts": {name: part.state_dict() for name, part in parts.items()},
                "generators": _generators(device),
                "seconds": self.seconds + now - self._begun,
                "also": also,
            }
            torch.save(state, buffer)
            content = buffer.getvalue()
            self._write(self._path, hashlib.sha256(content).digest() + content)
        except Exception as error:
            self._given_up = True
            said = f"cannot keep a training in {self._path} ({first_line(error)}); it goes on without"
            sys.stderr.write(f"gauntlet: {said}\n")
        self._last = time.monotonic()

    def remove(self) -> None:
        """Leave nothing of a training that has ended."""
        self._path.unlink(missing_ok=True)


_SAVES: ContextVar[Saves | None] = ContextVar("saves", default=None)


@contextmanager
def kept(saves: Saves) -> Iterator[None]:
    """Keep the first training that runs meanwhile; nothing is left once all is done, or training diverged."""
    token = _SAVES.set(saves)
    try:
        yield
        saves.remove()
    except Diverged:
        saves.remove()
        raise
    finally:
        _SAVES.reset(token)


def claimed() -> Saves | None:
    """Where the present training is kept, if it is: of several in one defense the first."""
    found = _SAVES.get()
    _SAVES.set(None)
    return found


def _generators(device: torch.device | str) -> dict[str, Any]:
    kind, words, *rest = np.random.get_state()
    cuda = torch.device(device).type == "cuda"
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(word) for word in words], *rest),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if cuda else None,
    }


def _restore_generators(state: Mapping[str, Any], device: torch.device | str) -> None:
    random.setstate(state["python"])
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
