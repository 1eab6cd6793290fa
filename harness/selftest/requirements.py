"""Strength that an attack must reach on each reference victim before it may serve in a suite.

:data:`RULES` is read from the top: the first rule that fits an attack, its norm and the victim holds. What all attacks
of a sort can promise stands at the end; above it stand the few that promise less (or more), each with the reason.

Distances are stated in multiples of the victim's unit: on a linear victim the distance to the nearest boundary in
closed form, on a network :data:`harness.selftest.victims.UNIT`. Numbers were measured and then given slack: a sound
attack passes with another seed, another version of torch, another order of the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from ..attacks.base import Access, Attack, Family, Kind, fits
from ..threat import NORMS, Norm
from .victims import ReferenceVictim, Sort


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
        victims: Victims by name, as patterns.
        attacks: Patterns of labels, with or without settings.
        stochastic: Whether the victim draws; None: either.
        raising: Words of which an honest refusal has some in it: on a victim that an attack cannot work on, an error
            that says so is as good as valid images.
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
    raising: tuple[str, ...] = ()
    skip: bool = False

    def fits(self, attack: Attack, norm: Norm, reference: ReferenceVictim) -> bool:
        """Whether the rule speaks of that attack, in that norm, on that victim."""
        return (
            reference.sort in self.sorts
            and self.stochastic in (None, reference.stochastic)
            and norm in self.norms
            and (not self.families or attack.family in self.families)
            and attack.kind in self.kinds
            and attack.access in self.access
            and fits(reference.name, self.victims)
            and fits(attack.toolkit, self.toolkits)
            and fits(attack.label, self.attacks)
        )


def stated(attack: Attack, norm: Norm, reference: ReferenceVictim) -> Rule:
    """What that attack promises in that norm on that victim."""
    return next(rule for rule in RULES if rule.fits(attack, norm, reference))


_BLACK_BOX: Final[tuple[Access, ...]] = ("scores", "decisions")
_SEEN: Final[tuple[Sort, ...]] = ("plain", "remedied")
_NETWORKS: Final[tuple[Sort, ...]] = ("plain", "hardened", "remedied")

_ONE_PIXEL: Final = "in L1 a single step moves a single pixel, and the box ends it"
_DIVERTED: Final = "its L1 steps follow the gradient of L2, which costs up to the root of the number of pixels"
_WEAK: Final = "known to be weak: see the table of its toolkit"
_OTHER_NORM: Final = "steps along the steepest direction of another norm"
_ONE_CONSTANT: Final = "one constant for all images, which is right for few of them"
_SMALL_STEPS: Final = "it walks in small steps, and a thousand of them do not end near"
_HELD_TO_MORE: Final = "ours are held to more: RayS finds the nearest along a ray to the last digit"
_OWN: Final = ("gauntlet",)
_PARTS: Final = "it changes part of the values alone"
_L1_STEPS: Final = ("fgm*", "bim*", "pgd*", "mim*", "apgd-art*", "adam*")

_NOT_ASKED: Final = (
    Rule(
        attacks=("lbfgs(*c=*",),
        victims=("flat linear*",),
        skip=True,
        why="where the loss is flat, one constant lets images go as far as they like or not at all",
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
        raising=("does not require grad",),
        why="there is no gradient to follow, and saying so is honest",
    ),
    Rule(sorts=("broken",), attacks=("lbfgs(*c=*",), toolkits=_OWN, why=_ONE_CONSTANT),
    Rule(
        sorts=("broken",),
        victims=("probabilities",),
        toolkits=("art",),
        attacks=("apgd*", "acg*", "reacg*"),
        raising=("probabilities",),
        why="ART refuses outputs that are no logits",
    ),
    Rule(
        sorts=("broken",),
        victims=("scaled-logits", "probabilities"),
        toolkits=_OWN,
        attacks=("apgd*", "fmn*"),
        floors=(Floor(1, 0.25),),
        why="its losses neither saturate nor depend on the scale of the logits",
    ),
    Rule(
        sorts=("broken",),
        victims=("scaled-logits",),
        attacks=("*_logits_ratio*", "fmn-linf", "ddn", "deepfool*", "alpha(mode=minimal)", "lbfgs"),
        norms=("linf", "l2"),
        floors=(Floor(1, 0.25),),
        why="does not depend on the scale of the logits",
    ),
    Rule(
        sorts=("broken",),
        victims=("corrugated-loss",),
        attacks=("apgd(*loss=dlr*", "*_logits_ratio*"),
        norms=("linf", "l2"),
        floors=(Floor(1, 0.25),),
        why="the waves cancel in its ratio",
    ),
    Rule(
        sorts=("broken",),
        victims=("optimising-forward",),
        toolkits=_OWN,
        attacks=("apgd*", "fmn*"),
        floors=(Floor(1.5, 0.25),),
        why="the gradient that it shows is not far from its own",
    ),
    Rule(sorts=("broken",), access=("gradients",)),
    Rule(sorts=("broken",), stochastic=True, why="without a remedy it sees one draw where the referee counts many"),
    Rule(sorts=("broken",), victims=("dead-units", "corrugated-loss"), access=("scores",), floors=(Floor(3, 0.5),)),
    Rule(
        sorts=("remedied",),
        stochastic=True,
        toolkits=("foolbox",),
        access=("decisions",),
        raising=("AssertionError", "starting_points are not adversarial"),
        why="it insists at every step that its images fool, which no draw promises; a crash is counted as one",
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

_WEAKER: Final = (
    Rule(toolkits=_OWN, attacks=("gradient(*p=*",), sorts=("linear",), floors=(Floor(5, 0.5),), why=_OTHER_NORM),
    Rule(toolkits=_OWN, attacks=("gradient(*p=*",), sorts=_SEEN, floors=(Floor(2, 0.3),), why=_OTHER_NORM),
    Rule(toolkits=_OWN, attacks=("alpha(*length=closed*",), why="takes a length that is right on a line only"),
    Rule(toolkits=_OWN, attacks=("alpha*",), sorts=("hardened",), why="a single step, whatever its length"),
    Rule(toolkits=_OWN, attacks=("alpha*", "gradient*"), sorts=_SEEN, norms=("l1",), why=_ONE_PIXEL),
    Rule(toolkits=_OWN, attacks=("alpha*",), sorts=_SEEN, floors=(Floor(1, 0.35),), why="a single step"),
    Rule(
        toolkits=_OWN,
        attacks=("lbfgs(*c=*",),
        sorts=("linear", "hardened"),
        floors=(Floor(5, 0.15),),
        why=_ONE_CONSTANT,
    ),
    Rule(toolkits=_OWN, attacks=("lbfgs(*c=*",), sorts=_SEEN, floors=(Floor(2, 0.2),), why=_ONE_CONSTANT),
    Rule(
        sorts=("linear",),
        attacks=("fgm-art(*minimal=True*",),
        floors=(Floor(3, 0.3),),
        why="its steps grow by a fixed share of the box's diagonal",
    ),
    Rule(attacks=_L1_STEPS, norms=("l1",), sorts=("linear",), floors=(Floor(6, 0.3),), why=_DIVERTED),
    Rule(attacks=_L1_STEPS, norms=("l1",), sorts=_NETWORKS, floors=(Floor(2, 0.3),), why=_DIVERTED),
    Rule(
        sorts=("linear",), attacks=("cw-l2*", "ead*"), floors=(Floor(4, 0.5), Floor(8, 0.15)), why="bisects a constant"
    ),
    Rule(sorts=("linear",), attacks=("fmn-l1*",), floors=(Floor(1.1, 0.5), Floor(2, 0.15)), why=_WEAK),
    Rule(sorts=_NETWORKS, attacks=("fmn-l1*",), floors=(Floor(1, 0.7),), why=_WEAK),
    Rule(toolkits=_OWN, attacks=("partial-pgd*",), sorts=("linear",), floors=(Floor(3, 0.25),), why=_PARTS),
    Rule(toolkits=_OWN, attacks=("partial-pgd*",), sorts=_NETWORKS, floors=(Floor(1.5, 0.35),), why=_PARTS),
    Rule(attacks=("vat*", "newtonfool*"), sorts=("plain", "hardened"), floors=(Floor(2, 0.6),), why=_WEAK),
    Rule(attacks=("vat*", "newtonfool*"), why=_WEAK),
    Rule(attacks=("boundary*",), sorts=("linear",), floors=(Floor(5, 0.35),), why=_SMALL_STEPS),
    Rule(attacks=("boundary*",), floors=(Floor(3, 0.35),), why=_SMALL_STEPS),
    Rule(
        attacks=("jsma*",),
        sorts=_NETWORKS,
        floors=(Floor(3, 0.25),),
        why="it aims at one class, and never takes a pixel back",
    ),
    Rule(attacks=("universal*", "frame-saliency*"), why="one perturbation for all images, or for rows of them"),
    Rule(sorts=("linear",), norms=("l0",), floors=(Floor(2, 0.5), Floor(4, 0.15)), why="pixels are counted in whole"),
    Rule(sorts=("linear",), attacks=("square-art*",), norms=("l2",), floors=(Floor(5, 0.3),), why=_WEAK),
)

_DEFAULTS: Final = (
    Rule(sorts=("linear",), families=("one-step", "iterated"), floors=(Floor(1.5, 0.25),)),
    Rule(sorts=("linear",), families=("minimum-norm",), floors=(Floor(1.1, 0.5), Floor(2, 0.05))),
    Rule(sorts=("linear",), families=("score",), floors=(Floor(3, 0.15),)),
    Rule(sorts=("linear",), families=("decision",), toolkits=_OWN, floors=(Floor(1.5, 0.25),), why=_HELD_TO_MORE),
    Rule(sorts=("linear",), families=("decision",), floors=(Floor(3, 0.5), Floor(6, 0.1))),
    Rule(sorts=_SEEN, families=("one-step",), floors=(Floor(1, 0.35),)),
    Rule(sorts=_SEEN, families=("iterated", "minimum-norm"), floors=(Floor(1, 0.25),)),
    Rule(sorts=("hardened",), families=("iterated", "minimum-norm"), floors=(Floor(1, 0.35),)),
    Rule(victims=("rounded-inputs",), families=("decision",), floors=(Floor(3, 0.35),)),
    Rule(families=("score",), floors=(Floor(1.5, 0.25),)),
    Rule(families=("decision",), toolkits=_OWN, floors=(Floor(1.5, 0.25),), why=_HELD_TO_MORE),
    Rule(families=("decision",), floors=(Floor(2, 0.25),)),
    Rule(),
)

RULES: Final[tuple[Rule, ...]] = (*_NOT_ASKED, *_NO_EPS, *_ON_BROKEN, *_WEAKER, *_DEFAULTS)
"""What is promised, the exceptions first."""
