"""The strength that an attack has to reach on each reference victim before it may serve in a suite.

:data:`RULES` is read from the top: the first rule that fits an attack, its norm and the victim holds. What all attacks
of a sort can promise stands at the end; above it stand the few that promise less (or more), each with the reason.

Distances are stated in multiples of the victim's unit: on a linear victim the distance to the nearest boundary in
closed form, on a network :data:`harness.selftest_victims.UNIT`. Numbers were measured and then given slack: a sound
attack passes with another seed, another version of torch, another order of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from .attack import Access, Attack, Family, Kind
from .selftest_victims import Reference, Sort
from .threat import NORMS, Norm


class Floor(NamedTuple):
    """At most the share ``left`` of the images may still stand at ``reach`` units."""

    reach: float
    left: float


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What some attacks promise on some victims.

    Attributes:
        floors: Promises; none: that the images are valid.
        why: Reason of an exception, "" for what a sort of attacks promises.
        sorts: Victims, by what they are there for.
        victims: Victims by name, as patterns.
        attacks: Patterns of labels, with or without settings.
        toolkits: Patterns of toolkits.
        families: Sorts of attacks.
        kinds: Those that keep a budget, and those that look for the nearest.
        access: What they need of the victim.
        norms: Norms.
        stochastic: Whether the victim draws; None: either.
        raising: Words that an honest refusal has in it: on a victim that an attack cannot work on, an error that says
            so is as good as valid images.
        skip: Whether the attack is not run at all.
    """

    floors: tuple[Floor, ...] = ()
    why: str = ""
    sorts: tuple[Sort, ...] = ("linear", "plain", "hardened", "broken", "remedied")
    victims: tuple[str, ...] = ("*",)
    attacks: tuple[str, ...] = ("*",)
    toolkits: tuple[str, ...] = ("*",)
    families: tuple[Family, ...] = ()
    kinds: tuple[Kind, ...] = ("budget", "minimal")
    access: tuple[Access, ...] = ("gradients", "scores", "decisions", "none")
    norms: tuple[Norm, ...] = NORMS
    stochastic: bool | None = None
    raising: str = ""
    skip: bool = False

    def fits(self, attack: Attack, norm: Norm, reference: Reference) -> bool:
        """Whether the rule speaks of that attack, in that norm, on that victim."""
        names = (attack.label, attack.label.partition("(")[0])
        return (
            reference.sort in self.sorts
            and self.stochastic in (None, reference.stochastic)
            and norm in self.norms
            and (not self.families or attack.family in self.families)
            and attack.kind in self.kinds
            and attack.access in self.access
            and _matches((reference.name,), self.victims)
            and _matches((attack.toolkit,), self.toolkits)
            and _matches(names, self.attacks)
        )


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def stated(attack: Attack, norm: Norm, reference: Reference) -> Rule:
    """What that attack promises in that norm on that victim."""
    return next(rule for rule in RULES if rule.fits(attack, norm, reference))


_BLACK_BOX: Final[tuple[Access, ...]] = ("scores", "decisions")
_SEEN: Final[tuple[Sort, ...]] = ("plain", "remedied")

_NOT_ASKED: Final = (
    Rule(
        attacks=("*difference_logits_ratio*",),
        toolkits=("art",),
        victims=("flat linear*",),
        skip=True,
        why="ART's ratio of logit differences needs three classes",
    ),
    Rule(
        attacks=("lbfgs(*c=[0-9]*",),
        victims=("flat linear*",),
        skip=True,
        why="a given constant is right for one scale of the loss",
    ),
    # a remedy shows gradients: what asks for none sees the same victim with and without, unless that one draws
    Rule(sorts=("remedied",), stochastic=False, access=("none", "decisions"), skip=True),
    Rule(sorts=("remedied",), victims=("rounded-inputs *", "zero-gradient *"), access=("scores",), skip=True),
)

_NO_EPS: Final = (
    Rule(families=("transformation",), why="has a severity of its own, and no eps"),
    Rule(
        attacks=("spatial*", "inversion", "contrast*", "blur", "other-image", "composite", "patch"),
        toolkits=("art", "foolbox"),
        why="looks for no nearest image in any norm",
    ),
    Rule(families=("noise",), access=("none",)),
    Rule(families=("noise",), access=_BLACK_BOX, sorts=("linear",), norms=("linf", "l2"), floors=(Floor(12, 0.5),)),
    Rule(families=("noise",), access=_BLACK_BOX, sorts=("plain",), norms=("linf", "l2"), floors=(Floor(3, 0.5),)),
    Rule(families=("noise",), norms=("linf", "l2", "l1")),
)

_ON_BROKEN: Final = (
    Rule(
        sorts=("broken",),
        victims=("zero-gradient",),
        access=("gradients",),
        raising="does not require grad",
        why="there is no gradient to follow, and saying so is honest",
    ),
    Rule(
        sorts=("broken",),
        victims=("probabilities",),
        toolkits=("art",),
        attacks=("apgd*",),
        raising="probabilities",
        why="ART refuses outputs that are no logits",
    ),
    Rule(
        sorts=("broken",),
        victims=("scaled-logits",),
        attacks=("apgd(*loss=*", "fmn-linf", "ddn", "deepfool*", "alpha(mode=minimal)", "lbfgs*", "*_logits_ratio*"),
        norms=("linf", "l2"),
        floors=(Floor(1, 0.2),),
        why="does not depend on the scale of the logits",
    ),
    Rule(
        sorts=("broken",),
        victims=("corrugated-loss",),
        attacks=("apgd(*loss=dlr*", "*_logits_ratio*"),
        norms=("linf",),
        floors=(Floor(1, 0.2),),
        why="the waves cancel in its ratio",
    ),
    Rule(sorts=("broken",), access=("gradients",)),
    Rule(sorts=("broken",), stochastic=True, why="without a remedy it sees one draw where the referee counts many"),
    Rule(
        sorts=("broken",),
        victims=("dead-units", "corrugated-loss", "scaled-logits", "probabilities"),
        access=("scores",),
        why="scores are flat there, or lie",
    ),
    Rule(
        sorts=("remedied",),
        stochastic=True,
        access=("decisions",),
        why="it follows a boundary that is elsewhere in every draw",
    ),
    Rule(sorts=("remedied",), stochastic=True, access=("scores",), kinds=("budget",), floors=(Floor(2, 0.4),)),
    Rule(
        sorts=("remedied",),
        stochastic=True,
        kinds=("minimal",),
        floors=(Floor(3, 0.95),),
        why="it stops at a boundary that only some draws show, and votes fall on either side",
    ),
)

_ONE_PIXEL: Final = "in L1 a single step moves a single pixel, and the box ends it"
_DIVERTED: Final = "its L1 steps follow the gradient of L2, which costs up to the root of the number of pixels"
_WEAK: Final = "known to be weak: see the table of its toolkit"

_WEAKER: Final = (
    Rule(
        sorts=("linear",),
        attacks=("gradient(*p=*",),
        floors=(Floor(5, 0.5),),
        why="steps along the steepest direction of another norm",
    ),
    Rule(
        sorts=_SEEN,
        attacks=("gradient(*p=*",),
        floors=(Floor(2, 0.3),),
        why="steps along the steepest direction of another norm",
    ),
    Rule(attacks=("alpha(*length=closed*",), why="takes the length that a flat softmax predicts, which is too long"),
    Rule(sorts=("hardened",), attacks=("alpha*",), why="a single step, whatever its length"),
    Rule(sorts=_SEEN, attacks=("alpha*",), norms=("linf", "l2"), floors=(Floor(1, 0.35),), why="a single step"),
    Rule(sorts=_SEEN, attacks=("alpha*", "gradient*"), norms=("l1",), why=_ONE_PIXEL),
    Rule(
        sorts=("linear", "hardened"),
        attacks=("lbfgs(*c=*",),
        floors=(Floor(5, 0.15),),
        why="one constant for all images, which is right for few of them",
    ),
    Rule(
        sorts=_SEEN,
        attacks=("lbfgs(*c=*",),
        floors=(Floor(2, 0.2),),
        why="one constant for all images, which is right for few of them",
    ),
    Rule(
        sorts=("linear",),
        attacks=("fgm-art(*minimal=True*",),
        floors=(Floor(3, 0.3),),
        why="its steps grow by a fixed share of the box's diagonal",
    ),
    Rule(
        sorts=("linear",),
        attacks=("fgm*", "bim*", "pgd*", "mim*", "apgd-art*", "adam*"),
        norms=("l1",),
        floors=(Floor(6, 0.3),),
        why=_DIVERTED,
    ),
    Rule(
        sorts=("plain", "hardened", "remedied"),
        attacks=("fgm*", "bim*", "pgd*", "mim*", "apgd-art*", "adam*"),
        norms=("l1",),
        floors=(Floor(2, 0.3),),
        why=_DIVERTED,
    ),
    Rule(
        sorts=("linear",), attacks=("cw-l2*", "ead*"), floors=(Floor(2, 0.5), Floor(4, 0.15)), why="bisects a constant"
    ),
    Rule(sorts=("linear",), attacks=("fmn-l1*",), floors=(Floor(1.1, 0.5), Floor(2, 0.15)), why=_WEAK),
    Rule(sorts=("plain", "hardened", "remedied"), attacks=("fmn-l1*",), floors=(Floor(1, 0.7),), why=_WEAK),
    Rule(attacks=("vat*", "newtonfool*"), sorts=("plain", "hardened"), floors=(Floor(2, 0.6),), why=_WEAK),
    Rule(attacks=("vat*", "newtonfool*"), why=_WEAK),
    Rule(
        attacks=("jsma*",),
        sorts=("plain", "hardened", "remedied"),
        floors=(Floor(3, 0.25),),
        why="it aims at one class, and never takes a pixel back",
    ),
    Rule(attacks=("universal*", "frame-saliency*"), why="one perturbation for all images, or for rows of them"),
    Rule(sorts=("linear",), norms=("l0",), floors=(Floor(2, 0.5), Floor(4, 0.15)), why="pixels are counted in whole"),
    Rule(sorts=("linear",), attacks=("square-art*",), norms=("l2",), floors=(Floor(5, 0.3),), why=_WEAK),
)

_DEFAULTS: Final = (
    Rule(sorts=("linear",), families=("one-step", "iterated"), floors=(Floor(1.5, 0.15),)),
    Rule(sorts=("linear",), families=("minimum-norm",), floors=(Floor(1.1, 0.5), Floor(2, 0.05))),
    Rule(sorts=("linear",), families=("score",), floors=(Floor(3, 0.15),)),
    Rule(sorts=("linear",), families=("decision",), floors=(Floor(3, 0.5), Floor(6, 0.1))),
    Rule(sorts=_SEEN, families=("one-step",), floors=(Floor(1, 0.35),)),
    Rule(sorts=_SEEN, families=("iterated", "minimum-norm"), floors=(Floor(1, 0.25),)),
    Rule(sorts=("hardened",), families=("iterated", "minimum-norm"), floors=(Floor(1, 0.35),)),
    Rule(victims=("rounded-inputs",), families=("decision",), floors=(Floor(3, 0.35),)),
    Rule(
        sorts=("plain", "hardened", "broken", "remedied"),
        families=("score", "decision"),
        floors=(Floor(1.5, 0.25),),
    ),
    Rule(),
)

RULES: Final[tuple[Rule, ...]] = (*_NOT_ASKED, *_NO_EPS, *_ON_BROKEN, *_WEAKER, *_DEFAULTS)
"""What is promised, the exceptions first."""
