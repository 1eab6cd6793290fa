"""The order in which a cascade attacks, and who is still shown to an attack. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from ..attacks.base import Attack
from ..schema.pairs import Share

CONTROLS: Final = frozenset({"noise", "transformation", "one-step"})
"""Families that also see what is proved to stand: they cost next to nothing, and a proof they break is our bug."""

BLACK_BOX: Final = frozenset({"score", "decision"})
"""Families that need no gradients."""

SAMPLE: Final = 10
"""One in so many images is the tenth."""


@dataclass(frozen=True)
class Link:
    """One pair of a cascade.

    Attributes:
        declared: The attack as its suite names it.
        attack: As it is asked.
        eps: Of a budget attack.
        floor: The eps at which an image must still stand to be attacked; None outside of a cascade.
        ceiling: The next larger eps, if what stands even there is not attacked; see
            :attr:`harness.planning.specs.Cell.ceiling`.
        share: Of what stands; "rest" comes after "tenth" of the same attack and eps.
    """

    declared: Attack
    attack: Attack
    eps: float | None
    floor: float | None = None
    ceiling: float | None = None
    share: Share = "all"


def links(
    attacks: Sequence[tuple[Attack, Attack]], grid: Sequence[float], *, cascade: bool, sampled: bool = False
) -> list[Link]:
    """The pairs of one norm in their order.

    Outside of a cascade that of the suite. At a single eps, too, but that the first iterated attack that ends where it
    succeeds comes before those without a budget, which go on for nearer ones. At several, from the first iterated
    attack on, those without a budget come first, each for all eps; then all of a budget at the largest eps, at the
    next, and so on. That first one meets everything that stands at each eps, the others at a smaller eps only what fell
    at the next larger one: what the whole battery leaves there stands here too, for this ball lies in that one.

    Args:
        attacks: As declared and as they are asked, in the suite's order.
        grid: Values of eps, ascending.
        cascade: Whether it is one.
        sampled: Whether attacks of :data:`BLACK_BOX` and second opinions (attacks that follow gradients after all
            iterated ones of ours, also for the nearest adversarial where one of ours looked for it before) that
            follow each other first meet a tenth, all of them, and then the rest. At several eps those of them without a
            budget come last: what other gradients break they need not.
    """
    ours = [n for n, (_, one) in enumerate(attacks) if one.toolkit == "gauntlet" and one.family == "iterated"]
    last = max(ours, default=len(attacks))
    first_opinions = {one.family for _, one in attacks[: last + 1] if one.toolkit == "gauntlet"}
    families = first_opinions & {"iterated", "minimum-norm"}
    second = [one for _, one in attacks[last + 1 :] if one.family in families]
    few = [one for _, one in attacks if sampled and (one.family in BLACK_BOX or one in second)]

    def whole(pair: tuple[Attack, Attack]) -> list[Link]:
        values = grid if pair[1].kind == "budget" else (None,)
        return [Link(*pair, eps, (min(grid) if eps is None else eps) if cascade else None) for eps in values]

    first = len(attacks)
    if cascade and len(grid) > 1:
        first = next((n for n, (_, one) in enumerate(attacks) if one.family == "iterated"), first)
    elif cascade:
        lead = next((n for n, (_, one) in enumerate(attacks) if one.ends_early and one.family == "iterated"), first)
        nearest = [n for n, (_, one) in enumerate(attacks) if one.kind != "budget" and one.family not in CONTROLS]
        at = min([n for n in nearest if n < lead < first], default=lead)
        attacks = [*attacks[:at], *attacks[lead : lead + 1], *attacks[at:lead], *attacks[lead + 1 :]]
    budgeted = [pair for pair in attacks[first:] if pair[1].kind == "budget"]
    late = [pair for pair in attacks[first:] if pair not in budgeted and pair[1] in few]
    others = [pair for pair in attacks if pair not in (*budgeted, *late)]
    found = [link for pair in others for link in whole(pair)]
    values = sorted(grid, reverse=True)
    for above, eps in zip([None, *values], values, strict=False):
        found += [Link(*pair, eps, eps, above if number else None) for number, pair in enumerate(budgeted)]
    found += [link for pair in late for link in whole(pair)]
    return _in_shares(found, few)


def _in_shares(whole: Sequence[Link], few: Sequence[Attack]) -> list[Link]:
    found: list[Link] = []
    for sampled, each in groupby(whole, lambda link: link.attack in few):
        run = list(each)
        found += [replace(link, share=share) for share in _SHARES for link in run] if sampled else run
    return found


_SHARES: Final[tuple[Share, ...]] = ("tenth", "rest")
