"""Base of health checks: question, evidence, answer, grade."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..metrics.pairs import Board, Bools, Floats, Pair, limit, reach, reference
from ..schema.eps import eps_text
from ..schema.pairs import UNLISTED
from ..schema.probes import ProbeFacts

Status = Literal["passed", "remedied", "failed", "skipped"]
Grade = Literal["A", "B", "C", "D"]

GRADES: Final[tuple[Grade, ...]] = ("A", "B", "C", "D")
"""Best first. A: nothing speaks against the number. B: small reserves. C: it stands with a reserve that must be read.
D: not to be believed, and not ranked."""

ONE_STEP: Final = frozenset({"one-step"})
ITERATED: Final = frozenset({"iterated", "minimum-norm"})
WHITE_BOX: Final = ONE_STEP | ITERATED
BLACK_BOX: Final = frozenset({"score", "decision"})
WORST_CASE: Final = WHITE_BOX | BLACK_BOX
"""Families that search the model itself for its worst case. Noise, transformations and transfers do not."""

FEW: Final = 3
"""Images below which nothing is concluded. At the lowest bound, 1 % of the images, a sound model shows three of 20 one
time in a thousand."""

MANY: Final = 5
"""Images below which no grade D follows: three of 40 are more than 5 %, but of 2 % as likely as not."""


@dataclass(frozen=True)
class Check:
    """One question put to an evaluation, and its answer.

    Attributes:
        name: Public name, also of its page in ``docs/health/``.
        title: The question in a few words.
        status: ``"passed"``; ``"remedied"`` (the model has the fault, the attacks were given the remedy);
            ``"failed"``; ``"skipped"`` (the suite has not what it takes to ask).
        grade: The best grade that this answer leaves.
        finding: What was measured, in one clause with numbers.
        remedy: What to do about it, "" where nothing is to be done.
    """

    name: str
    title: str
    status: Status
    grade: Grade
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known of one model of a board, in one norm."""

    board: Board
    model: str
    norm: str

    @cached_property
    def everything(self) -> list[Pair]:
        """The model's pairs in every norm."""
        return self.board.by_model.get(self.model, [])

    @cached_property
    def pairs(self) -> list[Pair]:
        """The model's pairs in this norm."""
        return [pair for pair in self.everything if pair.result.norm == self.norm]

    @cached_property
    def grid(self) -> tuple[float, ...]:
        """Values of eps that the board is judged at, ascending."""
        budgets = self.board.budgets.get(self.everything[0].result.dataset, {}) if self.everything else {}
        return tuple(budgets.get(self.norm, ()))

    @property
    def facts(self) -> ProbeFacts | None:
        """What the probe measured, None if the model was not probed in this norm."""
        return self.board.health.get(self.model, {}).get(self.norm)

    @cached_property
    def images(self) -> npt.NDArray[Any]:
        """Positions (N,) of the images that the model is judged on."""
        positions: npt.NDArray[Any] = reference(self.everything).columns["index"]
        return positions

    @cached_property
    def correct(self) -> Bools:
        """Which of them it gets right as they are."""
        right: Bools = reference(self.everything).columns["clean_correct"]
        return right

    @cached_property
    def _reaches(self) -> dict[int, Floats]:
        return {id(pair): reach(pair, self.images, self.norm) for pair in self.pairs}

    @cached_property
    def _met(self) -> dict[int, Bools]:
        return {id(pair): np.isin(self.images, pair.columns["index"][pair.columns["attacked"]]) for pair in self.pairs}

    def of(self, families: Iterable[str]) -> list[Pair]:
        """Pairs of some families in this norm, but for attacks of toolkits that nobody has looked at."""
        pairs = (pair for pair in self.pairs if not pair.result.toolkit.startswith(UNLISTED))
        return [pair for pair in pairs if pair.result.family in families]

    def lost(self, pairs: Iterable[Pair], eps: float) -> Bools:
        """Images (N,) that the model gets right and some of these pairs broke within eps."""
        hit = np.zeros(len(self.images), bool)
        for pair in pairs:
            hit |= self._reaches[id(pair)] <= limit(eps)
        return hit & self.correct

    def met(self, pair: Pair) -> Bools:
        """Images (N,) that this pair's attack was called for: not all of them in a cascade."""
        return self._met[id(pair)]


@dataclass(frozen=True)
class Question:
    """One check as it is declared.

    Attributes:
        remedy: What a user can do about a failure, in one sentence.
    """

    name: str
    title: str
    remedy: str
    answer: Callable[[Question, Evidence], Check]

    def ask(self, evidence: Evidence) -> Check:
        """Answer it for one model and norm."""
        return self.answer(self, evidence)

    def graded(self, grade: Grade, finding: str) -> Check:
        """Passed with an A, failed with anything below."""
        if grade == "A":
            return Check(self.name, self.title, "passed", "A", finding)
        return Check(self.name, self.title, "failed", grade, finding, self.remedy)

    def remedied(self, finding: str) -> Check:
        """The model has the fault, what attacks saw had not: a reserve that must be read."""
        return Check(self.name, self.title, "remedied", "C", finding)

    def skipped(self, finding: str, grade: Grade = "A", remedy: str = "") -> Check:
        """Not asked. A ``grade`` below A says that the answer is missed."""
        return Check(self.name, self.title, "skipped", grade, finding, remedy)


def grade_of(count: int, n: int, bounds: Mapping[Grade, float]) -> Grade:
    """The worst grade whose bound a share of images exceeds, with enough of the n to say so; A if there is none."""
    over: list[Grade] = [
        grade for grade, bound in bounds.items() if count > bound * n and count >= (MANY if grade == "D" else FEW)
    ]
    return max(over, default="A")  # letters ascend as grades fall


def exceeded(value: float, bounds: Mapping[Grade, float]) -> Grade:
    """The worst grade whose bound a value exceeds; A if there is none."""
    over: list[Grade] = [grade for grade, bound in bounds.items() if value > bound]
    return max(over, default="A")


def accuracies(left: Mapping[str, float | None] | None) -> dict[str, float]:
    """Accuracies that an attack of the probe left, by setting; empty where some could not be measured."""
    known = {setting: value for setting, value in (left or {}).items() if value is not None}
    return known if left is not None and len(known) == len(left) else {}


def concerns(label: str, norm: str) -> bool:
    """Whether a pair that is not there is of that norm: by its label, and any that does not say counts everywhere."""
    said = re.search(r"\((\w+)(?: [^()]*)?\)$", label)
    return said is None or said[1] == norm or said[1] not in ("linf", "l2", "l1", "l0")


def percent(share: float) -> str:
    """A share in [0, 1] as text."""
    return f"{100 * share:.1f} %"


def threat_text(norm: str, eps: float) -> str:
    """Norm and eps as text."""
    return f"{norm} {eps_text(eps)}"


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names as text, the first few of them, each once."""
    each = list(dict.fromkeys(names))
    return ", ".join(each[:most]) + (f" and {len(each) - most} more" if len(each) > most else "")
