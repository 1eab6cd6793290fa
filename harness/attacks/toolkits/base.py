"""Base of both toolkit adapters: the declaration of a foreign attack, and checks on what goes in and comes out."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import logging.config
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...threat import Norm, Threat
from ...victims.victim import Victim
from ..base import Access, Attack, Family, Kind, Targeting
from .capability import Capability, Value, find, refuse


@dataclass(frozen=True, kw_only=True, init=False)
class Foreign(Attack):
    """An attack of a toolkit, declared by class name and options.

    The options held are complete: those given and the table's values for the others, so that two declarations
    which mean the same are equal, and a changed default changes the identity.

    Args:
        attack: Class name in the toolkit, one of its aliases, or the short name.
        options: Options as a mapping or pairs, for programs (and ``dataclasses.replace``).
        **named: Options by keyword, for people.

    Attributes:
        options: Every option with its value, sorted by name.

    Raises:
        UserError: Unknown or refused attack, unknown option, value of the wrong type.
    """

    attack: str
    options: tuple[tuple[str, Value], ...]

    table: ClassVar[Mapping[str, Capability]]

    def __init__(self, attack: str, options: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **named: Any) -> None:
        entry = find(self.table, self.toolkit, attack)
        if entry.refused:
            refuse(self.toolkit, entry)
        self._declare(entry, {**dict(options), **named})
        if self.capability.refused:
            refuse(self.toolkit, self.capability)

    def _declare(self, entry: Capability, given: Mapping[str, Any]) -> None:
        object.__setattr__(self, "attack", entry.attack)
        object.__setattr__(self, "options", tuple(sorted(entry.complete(self.toolkit, given).items())))

    @classmethod
    def forced(cls, attack: str, **named: Any) -> Self:
        """Declare an attack even if it is refused: for self-tests, which must find it out. Never for a suite."""
        made = object.__new__(cls)
        made._declare(find(cls.table, cls.toolkit, attack), named)
        return made

    @property
    def capability(self) -> Capability:
        """The table's record, as it holds under this declaration's options."""
        return self.table[self.attack].under(dict(self.options))

    @property
    def kind(self) -> Kind:
        """Whether it keeps a budget or minimises the distance."""
        return self.capability.kind

    @property
    def access(self) -> Access:
        """What it needs of the victim."""
        return self.capability.access

    @property
    def targeting(self) -> Targeting:
        """By the toolkit's own targeted form where the table says that it has one, and this adapter can call it."""
        return "itself" if self.capability.aims else "no"

    @property
    def family(self) -> Family:
        """By access and kind, but for single steps, draws and transformations, which toolkits keep among the others."""
        if self.attack.endswith("FastGradientAttack") or self.attack == "FastGradientMethod":
            return "one-step"
        if any(word in self.attack for word in ("Spatial", "Blur", "Inversion", "Contrast")):
            return "transformation"
        return "noise" if "Noise" in self.attack else super().family

    def for_classes(self, count: int) -> Self | None:
        """Itself, with the options that the table names for fewer classes than it needs, or None if it names none."""
        entry = self.capability
        if count >= entry.min_classes:
            return self
        options = {**dict(self.options), **entry.fewer}
        return dataclasses.replace(self, options=tuple(options.items())) if entry.fewer else None

    @property
    def supported_norms(self) -> tuple[Norm, ...]:
        """Norms this very declaration can be asked for."""
        return self.capability.norms

    @property
    def label(self) -> str:
        """Short name and every option that is not at the table's value."""
        changed = ", ".join(f"{name}={value}" for name, value in self.changed().items())
        return f"{self.capability.short}({changed})" if changed else self.capability.short

    def changed(self) -> dict[str, Any]:
        """Options that differ from the table's values."""
        defaults = self.table[self.attack].options
        return {name: value for name, value in self.options if value != defaults[name]}

    def check(self, threat: Threat) -> None:
        """Raise ValueError if it cannot be asked for that threat, or a package it needs is not installed."""
        super().check(threat)
        for module in self.capability.needs:
            if importlib.util.find_spec(module) is None:
                raise UserError(f"{self.toolkit} {self.attack} needs the module {module}, which is not installed")

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Run the toolkit's attack; its own verdict is never looked at.

        Raises:
            UserError: The images are too small for this attack, or the classes too few.
        """
        if len(x) == 0 or (self.kind == "budget" and threat.eps == 0):
            return x.clone()  # the ball is a point, and the toolkits divide by eps
        if min(x.shape[-2:]) < self.capability.min_side:
            side = self.capability.min_side
            raise UserError(f"{self.toolkit} {self.attack} needs images of at least {side} pixels a side")
        if victim.classes is not None and victim.classes < self.capability.min_classes:
            least = self.capability.min_classes
            raise UserError(f"{self.label} needs at least {least} classes, the model has {victim.classes}")
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            x_adv = self._attack(victim, x.detach().clamp(0, 1), y, threat)
        return x_adv.detach().to(x)

    @abstractmethod
    def _attack(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Hand the images over the border; ``x`` is a copy in [0, 1]."""


def load(module: str, package: str) -> Any:
    """Import a toolkit's module late, in silence, and without letting it rearrange the program's logging.

    Raises:
        UserError: The toolkit is not installed.
    """
    # ART's import resets the root configuration: handlers that the program had opened would be closed
    with swapped(logging.config, "dictConfig", lambda config: None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"{package} is not installed: {error}; pip install {package}") from error


@torch.no_grad()
def rivals(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    """Target of targeted attacks, int64 (N,): the victim's, or else the most likely wrong class of each image."""
    if victim.target is not None:
        return victim.target.to(y.device)
    logits: Tensor = victim(x)
    wrong = logits.scatter(1, y[:, None].to(logits.device), -torch.inf)
    return wrong.argmax(1).to(y.device)


class _Seeded(np.random.RandomState):
    """A ``RandomState`` that takes its seed from NumPy's global generator when it is given none."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**32, dtype=np.uint32) if seed is None else seed)


@contextlib.contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value in a block; one that was not there is removed again."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def seeded_numpy() -> AbstractContextManager[None]:
    """Make ``np.random.RandomState()`` follow the global seed: some attacks draw from an unseeded one."""
    return swapped(np.random, "RandomState", _Seeded)


@contextlib.contextmanager
def scratch_directory() -> Iterator[None]:
    """Work in a temporary directory: some attacks leave files in the current one."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


def numpy_mat() -> AbstractContextManager[None]:
    """Bring back ``np.mat``, which NumPy 2 removed and an attack still calls."""
    return swapped(np, "mat", np.asmatrix)
