"""Base of health checks: question, evidence, answer, grade."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..metrics.certificates import band
from ..metrics.pairs import Board, Bools, Floats, Pair, reach, reference, wilson
from ..schema.certificates import CertificateFacts
from ..schema.counts import plural
from ..schema.eps import eps_text, limit
from ..schema.pairs import UNLISTED
from ..schema.probes import ProbeFacts

Status = Literal["passed", "remedied", "failed", "powerless", "skipped"]
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
GRADIENT_FREE: Final = BLACK_BOX | {"transfer"}
"""Families that no gradient of the model misleads, and that find more than chance does."""

FEW: Final = 3
"""Images below which nothing is concluded. At the lowest bound, 1 % of the images, a sound model shows three of 20 one
time in a thousand."""

MANY: Final = 5
"""Images below which no grade D follows: three of 40 are more than 5 %, but of 2 % as likely as not."""


BOUNDED: Final = 0.03
"""Share of images by which an accuracy may be too high where gradients have a fault: with more, or without a bound, the
fault is a D."""

PROVED: Final[Mapping[Grade, float]] = {"B": 0.0, "C": 0.01, "D": BOUNDED}
"""The same where it is a certificate that bounds the share: where it leaves nothing open, no fault matters."""


@dataclass(frozen=True)
class Power:
    """What an answer rests on: a question that nothing could have raised was not asked.

    Attributes:
        compared: How many images, or other things, were looked at.
        least: The fewest that raise the question.
        could: Of those compared the ones that could have raised it, such as the images that the weaker side of a
            comparison broke; None: each of them.
        what: What these are, a clause with ``{}`` for their number.
        unit: What was compared.
    """

    compared: int
    least: int
    could: int | None = None
    what: str = ""
    unit: str = "images"

    @property
    def enough(self) -> bool:
        """Whether the question could have been raised."""
        return (self.compared if self.could is None else self.could) >= self.least

    @property
    def why(self) -> str:
        """Why it could not."""
        if self.could is None:
            return f"{self.compared} {self.unit} were compared, and it takes {self.least}"
        return f"{self.what.format(self.could)}, and it takes {self.least}"

    def __str__(self) -> str:
        some = f": {self.what.format(self.could)}" if self.could is not None else ""
        return f"{self.compared} {self.unit}{some}; {self.least} or more raise the question"


@dataclass(frozen=True)
class Check:
    """One question put to an evaluation, and its answer.

    Attributes:
        name: Public name, also of its page in ``docs/health/``.
        title: The question in a few words.
        status: ``"passed"``; ``"remedied"`` (the model has the fault, the attacks were given the remedy);
            ``"failed"``; ``"powerless"`` (asked where nothing could have raised it); ``"skipped"`` (the suite has not
            what it takes to ask).
        grade: The best grade that this answer leaves.
        finding: What was measured, in one clause with numbers.
        remedy: What to do about it, "" where nothing is to be done.
        power: What the answer rests on; None where the question was not asked.
    """

    name: str
    title: str
    status: Status
    grade: Grade
    finding: str
    remedy: str = ""
    power: Power | None = None


@dataclass(frozen=True)
class Bound:
    """What attacks that need no gradient say of those that do, at one eps.

    Attributes:
        broke: Images that the former broke and the latter were shown.
        missed: Of these the ones that the latter did not break.
        standing: Images that nothing broke.
        n: Images.
    """

    eps: float
    broke: int
    missed: int
    standing: int
    n: int

    @property
    def share(self) -> float:
        """Most images that may stand because gradients fail, as a share of all.

        Were every image that stands one that can be broken, gradient attacks would miss as large a share of them as of
        those that were broken without gradients: the upper end of its 95 % interval (Wilson), all of them where nothing
        was. It holds as far as the images broken without gradients are like the others.
        """
        rate = wilson(self.missed, self.broke)[1] if self.broke else 1.0
        return rate * self.standing / self.n if self.n else 1.0


@dataclass(frozen=True)
class Gap:
    """What certificates leave open at one eps.

    Attributes:
        left: Images that nothing broke and that are not proved to stand.
        certified: Images that a certificate was asked for.
        n: Images that the model is judged on.
    """

    eps: float
    left: int
    certified: int
    n: int

    @property
    def share(self) -> float:
        """Most images that may stand wrongly, as a share of all.

        The upper end of the 95 % interval (Wilson) of those left; that share itself where all images were asked about.
        """
        return self.left / self.n if self.certified == self.n else wilson(self.left, self.certified)[1]

    def __str__(self) -> str:
        some = "all" if self.certified == self.n else str(self.certified)
        return (
            f"certificates of {some} images leave {self.left} open, so that at most {percent(self.share)} stand wrongly"
        )


@dataclass(frozen=True)
class Evidence:
    """What is known of one model of a board, in one norm."""

    board: Board
    model: str
    norm: str

    @cached_property
    def everything(self) -> list[Pair]:
        """The model's pairs in every norm, without images that somebody submitted: a battery is no better for them."""
        return [pair for pair in self.board.by_model.get(self.model, []) if not pair.result.submitted]

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
        positions: npt.NDArray[Any] = (
            reference(self.everything).columns["index"] if self.everything else np.empty(0, int)
        )
        return positions

    @cached_property
    def correct(self) -> Bools:
        """Which of them are not lost as they are: it gets them right or, with targets, takes them for no target."""
        return reference(self.everything).stands if self.everything else np.empty(0, bool)

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
        """Images (N,) that are not lost as they are, and that some of these pairs broke within eps."""
        hit = np.zeros(len(self.images), bool)
        for pair in pairs:
            hit |= self._reaches[id(pair)] <= limit(eps)
        return hit & self.correct

    def met(self, pairs: Iterable[Pair]) -> Bools:
        """Images (N,) that one of these pairs was called for: not all of them in a cascade."""
        return np.logical_or.reduce([self._met[id(pair)] for pair in pairs])  # type: ignore[no-any-return]

    def met_by_each(self, pairs: Sequence[Pair]) -> Bools:
        """Images (N,) that each of these attacks was called for.

        Where there are others, those of which a sampled cascade asks a part alone, by choice, excuse nothing.
        """
        whole = [pair for pair in pairs if pair.result.share == "all"] or pairs
        apart: dict[tuple[str, str, float | None], list[Pair]] = {}
        for pair in whole:
            apart.setdefault((pair.result.attack, pair.result.source, pair.result.eps), []).append(pair)
        met = [self.met(parts) for parts in apart.values()]
        return np.logical_and.reduce(met) if met else np.zeros_like(self.correct)

    @cached_property
    def judged(self) -> tuple[float, ...]:
        """Values of :attr:`grid` at which the model was attacked."""
        return tuple(eps for eps in self.grid if any(pair.result.eps in (None, eps) for pair in self.pairs))

    @cached_property
    def gap(self) -> Gap | None:
        """What certificates leave open at the eps where they leave most.

        None where there is no proof at some eps, none that holds without chance, or one that an attack contradicts.
        """
        found = [one for proofs in (self.board.certificates, self.board.screens) if (one := self._gap(proofs))]
        return min(found, key=lambda gap: gap.share, default=None)

    def _gap(self, proofs: Mapping[str, Mapping[str, CertificateFacts]]) -> Gap | None:
        facts = proofs.get(self.model, {}).get(self.norm)
        if facts is None or facts.alpha is not None:
            return None
        bands = [band(facts, self.pairs, self.norm, eps) for eps in self.judged]
        gaps = [
            Gap(one.eps, round((one.attacked - one.certified) * one.n), one.n, len(self.images))
            for one in bands
            if one is not None and one.n and not one.uncovered and not one.broken
        ]
        return max(gaps, key=lambda gap: gap.share) if gaps and len(gaps) == len(bands) else None

    @cached_property
    def bound(self) -> Bound:
        """What attacks without gradients say of the others, at the eps that leaves most in doubt."""
        free, led = self.of(GRADIENT_FREE), [pair for pair in self.of(WHITE_BOX) if not pair.result.failed]
        found = [Bound(max(self.grid, default=0.0), 0, 0, int(self.correct.sum()), len(self.images))]
        for eps in self.judged:
            here = [pair for pair in led if pair.result.eps in (None, eps)]
            hit, left = self.lost(free, eps) & self.met_by_each(here), self.correct & ~self.lost(self.pairs, eps)
            missed = hit & ~self.lost(here, eps)
            found.append(Bound(eps, int(hit.sum()), int(missed.sum()), int(left.sum()), len(self.images)))
        return max(found[1:] or found, key=lambda bound: bound.share)


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

    def graded(self, grade: Grade, finding: str, power: Power | None = None, *, powerless: Grade = "A") -> Check:
        """Passed with an A, failed with anything below; ``powerless`` is the grade where it could not have failed."""
        if grade != "A":
            return Check(self.name, self.title, "failed", grade, finding, self.remedy, power)
        if power is None or power.enough:
            return Check(self.name, self.title, "passed", "A", finding, power=power)
        finding += f"; it could not have been otherwise: {power.why}"
        return Check(self.name, self.title, "powerless", powerless, finding, "" if powerless == "A" else MORE, power)

    def remedied(self, finding: str, power: Power | None = None) -> Check:
        """The model has the fault, what attacks saw had not: a reserve that must be read."""
        return Check(self.name, self.title, "remedied", "C", finding, power=power)

    def skipped(self, finding: str, grade: Grade = "A", remedy: str = "") -> Check:
        """Not asked. A ``grade`` below A says that the answer is missed."""
        return Check(self.name, self.title, "skipped", grade, finding, remedy)


MORE: Final = "Ask more: more images, a larger eps, or attacks of that kind with more queries."


def least(n: int, bounds: Mapping[Grade, float]) -> int:
    """The fewest of n images for which :func:`grade_of` gives less than an A."""
    return min(max(math.floor(bound * n) + 1, MANY if grade == "D" else FEW) for grade, bound in bounds.items())


def bounded(evidence: Evidence, grade: Grade, finding: str) -> tuple[Grade, str]:
    """Grade and finding of a fault of gradients, by itself a C or a D, that does not say how wrong the accuracy is.

    A certificate says it without doubt (:data:`PROVED`). Else a C remains one if attacks that need no gradient show
    that the accuracy is at most :data:`BOUNDED` too high, and is a D if not.
    """
    best, shown = proved(evidence)
    if best != "D":
        return best, f"{finding}; {shown}"
    if grade == "D":
        return grade, finding
    bound = evidence.bound
    where = threat_text(evidence.norm, bound.eps)
    shown = f"attacks without gradients broke no image at {where} that would show how many stand wrongly"
    if bound.broke:
        shown = (
            f"attacks without gradients broke {plural(bound.broke, 'image')} at {where}, of which gradients missed "
            f"{bound.missed}: at that rate up to {percent(bound.share)} stand wrongly"
        )
    return ("C" if bound.share <= BOUNDED else "D"), f"{finding}; {shown}"


def proved(evidence: Evidence) -> tuple[Grade, str]:
    """The best grade that certificates leave to a model whose attacks cannot be believed, and what they show."""
    gap = evidence.gap
    if gap is None:
        return "D", ""
    return exceeded(gap.share, PROVED), f"at {threat_text(evidence.norm, gap.eps)} {gap}"


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
