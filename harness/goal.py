"""What an attack is after: any wrong label, or, targeted, one of its own for each image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from . import identity
from .errors import UserError
from .schema.goals import UNTARGETED

Rule = Literal["next", "random", "class"]

Labels = TypeVar("Labels", bound=Any)
"""Tensors or arrays of labels."""


def reached(labels: Labels, y: Labels, target: Labels | None) -> Labels:
    """Which labels (N,) mean that an image is broken: the one definition of it, for the referee and everybody else.

    Without targets (N,) every label but the true one ``y`` does; with targets that of the target alone. An image that
    is taken for a third class stands.
    """
    found: Labels = labels != y if target is None else labels == target
    return found


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Targets for images: an image counts as broken only where it is classified as its target.

    Attributes:
        rule: ``"next"``: the class after the true one, and the first after the last; ``"random"``: a wrong class drawn
            for each place in the order of images, the same for every model and attack; ``"class"``: one for all. Images
            of that very class have no target, and are left out.
        target: The class for ``"class"``, counted from 0.

    Raises:
        UserError: An unknown rule; a class without the rule for it, or the other way round.
    """

    name: ClassVar[str] = "Goal"

    rule: Rule
    target: int | None = field(default=None, metadata={"identity": "set"})

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise UserError(f"targets are next, random, or a class, got {self.rule!r}")
        if (self.rule == "class") != (self.target is not None):
            raise UserError("rule='class' and target go together")

    def __str__(self) -> str:
        return f"targeted: {self.rule if self.target is None else f'class {self.target}'}"

    @property
    def text(self) -> str:
        """How the command line names it."""
        return self.rule if self.target is None else str(self.target)

    def targets(self, y: npt.NDArray[Any], places: Iterable[int], classes: int) -> npt.NDArray[np.int64]:
        """A target for each image, int64 (N,); that of an image of the very class aimed at is its own label.

        Args:
            y: True labels (N,).
            places: Places of the images in the order that they are judged in.
            classes: Their number K.

        Raises:
            UserError: There is no such class.
        """
        labels = np.asarray(y, np.int64)
        if self.target is not None:
            if not 0 <= self.target < classes:
                raise UserError(f"the target must be a class in 0..{classes - 1}, got {self.target}")
            return np.full_like(labels, self.target)
        if self.rule == "next":
            return (labels + 1) % classes
        shift = [1 + identity.derive_seed("target", int(place)) % (classes - 1) for place in places]
        return (labels + np.asarray(shift, np.int64)) % classes


def goal_text(goal: Goal | None) -> str:
    """A goal as records and tables say it."""
    return UNTARGETED if goal is None else str(goal)


def parse_goal(text: str | int, classes: Iterable[str] = ()) -> Goal:
    """Read ``next``, ``random`` or a class by its number or its name.

    Raises:
        UserError: It is none of these.
    """
    if text in ("next", "random"):
        return Goal(rule="next" if text == "next" else "random")
    names = list(classes)
    if str(text) in names:  # of a data set whose classes are called 0, 1, ... that is the same
        return Goal(rule="class", target=names.index(str(text)))
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0 or (names and number >= len(names)):
        few = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise UserError(f"targets are next, random, or a class ({few or 'a number from 0'}), got {text!r}")
    return Goal(rule="class", target=number)
