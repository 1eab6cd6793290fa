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
    sorts: tuple[Sort, ...] = ("linear", "plain", "broken", "remedied")
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
_NETWORKS: Final[tuple[Sort, ...]] = ("plain", "remedied", "broken")
_SEEN: Final[tuple[Sort, ...]] = ("plain", "remedied")

_NOT_ASKED: Final = (
    Rule(
        attacks=("*difference_logits_ratio*",),
        toolkits=("art",),
        victims=("linear, 2 classes",),
        skip=True,
        why="ART's ratio of logit differences needs three classes",
    ),
    # a remedy shows gradients: what asks for none sees the same victim with and without, unless that one draws
    Rule(sorts=("remedied",), stochastic=False, access=("none", "decisions"), skip=True),
    Rule(sorts=("remedied",), victims=("rounded-inputs *", "zero-gradient *"), access=("scores",), skip=True),
)

_HARMLESS: Final = (
    Rule(families=("transformation",), why="has a severity of its own, and no eps"),
    Rule(
        attacks=("spatial*", "inversion", "contrast*", "blur", "other-image", "composite", "patch"),
        why="minimises no norm",
    ),
    Rule(families=("noise",), access=("none",)),
    Rule(families=("noise",), access=_BLACK_BOX, sorts=("plain",), floors=(Floor(3, 0.5),)),
    Rule(families=("noise",), access=_BLACK_BOX, sorts=("linear",), floors=(Floor(10, 0.5),)),
    Rule(families=("noise",)),
)

_BROKEN: Final = (
    Rule(
        sorts=("broken",),
        victims=("zero-gradient",),
        access=("gradients",),
        raising="does not require grad",
        why="there is no gradient to follow",
    ),
    Rule(
        sorts=("broken",),
        victims=("probabilities",),
        toolkits=("art",),
        access=("gradients",),
        raising="probabilities",
        why="ART refuses outputs that are no logits",
    ),
    Rule(
        sorts=("broken",),
        victims=("scaled-logits",),
        attacks=("apgd-art(*difference_logits_ratio*", "fmn-linf", "ddn", "deepfool*", "alpha*", "lbfgs*"),
        norms=("linf", "l2"),
        floors=(Floor(1, 0.15),),
        why="does not depend on the scale of the logits",
    ),
    Rule(
        sorts=("broken",),
        victims=("corrugated-loss",),
        attacks=("apgd-art(*difference_logits_ratio*",),
        norms=("linf",),
        floors=(Floor(1, 0.15),),
        why="the waves cancel in its ratio",
    ),
    Rule(sorts=("broken",), access=("gradients",)),
    Rule(
        sorts=("broken",),
        victims=("random-input",),
        why="without a remedy it sees one draw, the referee judges by votes",
    ),
    Rule(
        sorts=("broken",),
        victims=("dead-units", "corrugated-loss", "scaled-logits", "probabilities"),
        access=("scores",),
        why="scores are flat there, or lie",
    ),
    Rule(
        sorts=("remedied",),
        victims=("random-input*",),
        kinds=("minimal",),
        floors=(Floor(3, 0.95),),
        why="it stops at the boundary that some draws show, and votes fall on either side",
    ),
)

_DEFAULTS: Final = (
    Rule(sorts=("linear",), families=("one-step",), floors=(Floor(1.5, 0.15),)),
    Rule(sorts=("linear",), families=("iterated",), floors=(Floor(1.5, 0.15),)),
    Rule(sorts=("linear",), families=("minimum-norm",), floors=(Floor(1.1, 0.5), Floor(2, 0.05))),
    Rule(sorts=("linear",), families=("score",), floors=(Floor(3, 0.15),)),
    Rule(sorts=("linear",), families=("decision",), floors=(Floor(2.5, 0.5), Floor(5, 0.1))),
    Rule(sorts=_SEEN, families=("one-step",), floors=(Floor(1, 0.25),)),
    Rule(sorts=_SEEN, families=("iterated",), floors=(Floor(1, 0.15),)),
    Rule(sorts=_SEEN, families=("minimum-norm",), floors=(Floor(1, 0.15),)),
    Rule(sorts=_NETWORKS, families=("score",), floors=(Floor(1.5, 0.25),)),
    Rule(sorts=_NETWORKS, families=("decision",), floors=(Floor(1.5, 0.25),)),
    Rule(),
)

RULES: Final[tuple[Rule, ...]] = (*_NOT_ASKED, *_HARMLESS, *_BROKEN, *_DEFAULTS)
"""What is promised, the exceptions first."""
