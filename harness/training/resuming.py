"""Long trainings are kept between epochs: what was killed goes on from there, to the same weights, bit for bit."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from .defense import Diverged

EVERY: Final = 60.0
"""Seconds between two writings: shorter trainings write nothing."""

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
        self.seconds = 0.0

    def read(self) -> dict[str, Any] | None:
        """What an earlier process kept, if it was made with the same and is whole."""
        try:
            found: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
            return found if found["made_with"] == self._made_with else None
        except Exception:  # whatever is wrong with it, training can begin anew
            return None

    def restore(self, found: Mapping[str, Any], parts: Mapping[str, Part], device: torch.device | str) -> Any:
        """Put all parts and the random generators back to where that process had come.

        Returns:
            What :meth:`keep` was told beside the parts.
        """
        for name, part in parts.items():
            part.load_state_dict(found["parts"][name])
        _restore_generators(found["generators"], device)
        self.seconds = found["seconds"]
        return found["also"]

    def keep(self, parts: Mapping[str, Part], also: Any, device: torch.device | str) -> None:
        """Write down where training stands after an epoch, if the last time is long ago; ``also``: plain values."""
        now = time.monotonic()
        if now - self._last < EVERY:
            return
        self._last = now
        buffer = io.BytesIO()
        state = {
            "made_with": self._made_with,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "generators": _generators(device),
            "seconds": self.seconds + now - self._begun,
            "also": also,
        }
        torch.save(state, buffer)
        self._write(self._path, buffer.getvalue())

    def remove(self) -> None:
        """Leave nothing of a training that has ended."""
        self._path.unlink(missing_ok=True)


_SAVES: ContextVar[Saves | None] = ContextVar("saves", default=None)


@contextmanager
def kept(saves: Saves) -> Iterator[None]:
    """Keep the training that runs meanwhile; nothing is left of one that ended, or diverged."""
    token = _SAVES.set(saves)
    try:
        yield
        saves.remove()
    except Diverged:
        saves.remove()
        raise
    finally:
        _SAVES.reset(token)


def present() -> Saves | None:
    """Where the present training is kept, if it is."""
    return _SAVES.get()


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
