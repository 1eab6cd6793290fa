"""Adapter for attacks of Foolbox 3, imported only when one runs.

>>> Foolbox("LinfProjectedGradientDescentAttack", steps=40)  # doctest: +SKIP

A budget attack runs at the threat's eps and returns its images clipped to it; a minimal attack runs without an
eps and returns the nearest adversarial it found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor

from ...threat import Threat, per_sample
from ...victims.victim import Victim
from .base import Foreign, load, rivals
from .capability import Capability, FoolboxCapability
from .foolbox_catalogue import FOOLBOX_TABLE, STARTS

_BLACKENS: Final = ("L2CarliniWagnerAttack", "EADAttack")
"""Attacks that return a black image where they fail, which is a success wherever black is another class."""


def load_foolbox() -> None:
    """Import Foolbox."""
    load("foolbox", "foolbox")


@dataclass(frozen=True, kw_only=True, init=False)
class Foolbox(Foreign):
    """An attack of Foolbox by class name and keyword arguments; see :class:`~.base.Foreign`.

    An attack that walks from a starting point is given one: from the attack named by its option ``init_attack``.
    Images for which none is found, and images that are misclassified already, come back as they are.
    """

    name: ClassVar[str] = "foolbox"
    toolkit: ClassVar[str] = "foolbox"
    table: ClassVar[Mapping[str, Capability]] = FOOLBOX_TABLE

    @property
    def needs_a_boundary(self) -> bool:
        """Attacks with a starting point raise where the model's answer about it changes."""
        return cast(FoolboxCapability, self.capability).starts

    @property
    def loads(self) -> tuple[Callable[[], None], ...]:
        """Foolbox."""
        return (load_foolbox,)

    def _attack(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        entry = cast(FoolboxCapability, self.capability)
        foolbox = load("foolbox", "foolbox")
        model = foolbox.PyTorchModel(victim, bounds=(0, 1), device=victim.device)
        x, y = x.to(victim.device), y.to(victim.device)
        options: dict[str, Any] = dict(self.options)
        start = options.pop("init_attack", None)
        if entry.distance:
            options["distance"] = getattr(foolbox.distances, threat.norm)
        if entry.constraint:
            options["constraint"] = threat.norm
        attack = getattr(foolbox.attacks, self.attack)(**options)
        if entry.feed:
            attack.feed(model, x)
        if entry.starts:

            def model_of(rows: Tensor) -> Any:
                return foolbox.PyTorchModel(victim.of(rows), bounds=(0, 1), device=victim.device)

            init = getattr(foolbox.attacks, start)(**STARTS[start])
            if victim.target is not None:
                examples = [] if victim.examples is None else [victim.examples.to(x)]
                criterion = foolbox.criteria.TargetedMisclassification
                return _from_targets(attack, criterion, model_of, x, examples, victim.target)
            return _from_starts(attack, init, model_of, x, y)
        if entry.targeted == "only" or victim.target is not None:
            criterion = foolbox.criteria.TargetedMisclassification(rivals(victim, x, y))
        else:
            criterion = foolbox.criteria.Misclassification(y)
        # `run` is what `attack(...)` calls, before it asks the model for a verdict that nobody reads
        if entry.kind == "minimal":
            x_adv = cast(Tensor, attack.run(model, x, criterion))
            if self.attack in _BLACKENS:
                failed = (x_adv == 0).flatten(1).all(1)
                x_adv = torch.where(per_sample(failed, x), x, x_adv)
            return x_adv
        raw = attack.run(model, x, criterion, epsilon=threat.eps)
        return cast(Tensor, attack.distance.clip_perturbation(x, raw, threat.eps))


def _from_starts(attack: Any, init: Any, model_of: Callable[[Tensor], Any], x: Tensor, y: Tensor) -> Tensor:
    """Attack the images that have a starting point, for one without stops the whole batch.

    ``model_of`` gives the model for batches of some of the images.
    """

    def adversarial(images: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return cast(Tensor, model_of(rows)(images[rows]).argmax(1) != y[rows])

    x_adv = x.clone()
    rows = torch.arange(len(x), device=x.device)
    rows = rows[~adversarial(x, rows)]  # a misclassified image has no direction to walk in: distance 0
    if len(rows) == 0:
        return x_adv
    starts = x.clone()
    starts[rows] = init.run(model_of(rows), x[rows], y[rows])
    while len(rows):
        # again for every smaller batch: a start at the boundary may change sides with the batch size
        good = adversarial(starts, rows)
        if good.all():
            x_adv[rows] = attack.run(model_of(rows), x[rows], y[rows], starting_points=starts[rows])
            break
        rows = rows[good]
    return x_adv


def _from_targets(
    attack: Any, criterion: Any, model_of: Callable[[Tensor], Any], x: Tensor, examples: list[Tensor], target: Tensor
) -> Tensor:
    """Attack from the nearest image, of the batch or of batches of examples, that is taken for the target.

    Images without one, and those that are taken for it themselves, come back as they are.
    """

    def labels(images: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return cast(Tensor, model_of(rows)(images).argmax(1))

    rows = torch.arange(len(x), device=x.device)
    others = torch.cat([x, *examples])
    # examples belong to none of the images under attack
    found = torch.cat([labels(x, rows), *(labels(images, rows[:0]) for images in examples)])
    distance = torch.cdist(x.flatten(1), others.flatten(1))
    nearest = distance.masked_fill(found.unsqueeze(0) != target.unsqueeze(1), torch.inf).min(1)
    x_adv = x.clone()
    rows = (nearest.values.isfinite() & (found[: len(x)] != target)).nonzero().squeeze(1)
    while len(rows):
        # as above: another batch size may change a label, and one image without a start stops the whole batch
        starts = others[nearest.indices[rows]]
        good = labels(starts, rows) == target[rows]
        if good.all():
            x_adv[rows] = attack.run(model_of(rows), x[rows], criterion(target[rows]), starting_points=starts)
            break
        rows = rows[good]
    return x_adv


def capabilities() -> tuple[Capability, ...]:
    """Every attack of Foolbox that the door knows, the refused ones included; imports nothing."""
    return tuple(FOOLBOX_TABLE.values())
