"""Capabilities of toolkit attacks: one record per attack; look-up refuses broken ones.

The tables are plain data, so that listing and planning need neither ART nor Foolbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from ...errors import UserError, unknown
from ...threat import Norm
from ..base import Access, Kind

Value = bool | int | float | str | None | tuple["Value", ...]
"""What an option may hold: anything with a canonical form that can be hashed."""

Targeted = Literal["no", "yes", "only"]
Fill = Literal["batch_size", "verbose", "targeted", "norm", "eps", "eps_step"]
Recipe = Literal["plain", "bytes", "frames", "patch", "starts", "universal", "battery"]


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One attack of a toolkit.

    Attributes:
        short: Name for people, unique over both toolkits and our own attacks.
        norms: Norms it can be asked for; all four where it measures none (rotations, blur).
        targeted: Whether it has a targeted form. Attacks run untargeted, except ``"only"``, which aim at the rival, the
            most likely wrong class of the clean image; in a battery with targets (:class:`harness.goal.Goal`) both
            ``"only"`` and ``"yes"`` aim at these.
        options: Every hyperparameter a declaration may set, with the value it has otherwise. Mostly the toolkit's
            own; a comment in the table says where not.
        choices: Options that take one of a few values.
        variants: ``(option, value, changes)``: what else is true of it when an option has that value.
        needs: Importable modules it needs beyond its toolkit.
        defect: A known flaw or surprise, as measured with the versions named in the tables.
        refused: Whether a declaration is refused, with ``defect`` as the reason.
        instead: What to use instead of a refused attack.
        min_side: Smallest image side, in pixels, on which it works.
        min_classes: Smallest number of classes with which it works.
        fewer: Options that make it work with fewer; none: a suite leaves it out there.
        smoke: Options for the shortest meaningful run, for tests.
    """

    attack: str
    short: str
    norms: tuple[Norm, ...] = ()
    kind: Kind = "budget"
    access: Access = "gradients"
    targeted: Targeted = "no"
    options: Mapping[str, Value] = field(default_factory=dict, hash=False)
    choices: Mapping[str, tuple[Value, ...]] = field(default_factory=dict, hash=False)
    variants: tuple[tuple[str, Value, Mapping[str, Any]], ...] = field(default=(), hash=False)
    needs: tuple[str, ...] = ()
    defect: str = ""
    refused: bool = False
    instead: str = ""
    aliases: tuple[str, ...] = ()
    min_side: int = 1
    min_classes: int = 2
    fewer: Mapping[str, Value] = field(default_factory=dict, hash=False)
    smoke: Mapping[str, Value] = field(default_factory=dict, hash=False)

    @property
    def aims(self) -> bool:
        """Whether it can be led to a target of its own for each image."""
        return self.targeted != "no"

    def under(self, options: Mapping[str, Value]) -> Capability:
        """The record that holds under these options: norms, kind or refusal may depend on them."""
        found = self
        for option, value, changes in self.variants:
            if options.get(option, self.options[option]) == value:
                found = replace(found, **changes)
        return found

    def complete(self, toolkit: str, given: Mapping[str, Any]) -> dict[str, Value]:
        """Every option with the value it takes, the given ones checked and brought to the type of the default.

        Raises:
            UserError: An option the attack does not have, or a value it cannot take.
        """
        what = f"{toolkit} {self.attack}"
        for name in given:
            if name not in self.options:
                raise unknown(f"option of {what}", name, sorted(self.options) or ["none: it has no options"])
        options = {**self.options, **{name: _plain(what, name, value) for name, value in given.items()}}
        for name in given:
            options[name] = _like(what, name, options[name], self.options[name])
            if name in self.choices and options[name] not in self.choices[name]:
                choices = ", ".join(map(str, self.choices[name]))
                raise UserError(f"{name} of {what} cannot be {options[name]!r}; choose from {choices}")
        return options


@dataclass(frozen=True, kw_only=True)
class ArtCapability(Capability):
    """A :class:`Capability` and how ART's class is called.

    Attributes:
        fills: Arguments the door sets from the threat and the batch.
        one_by_one: Whether it is right only with a batch size of one.
        target: Whether the labels of a ``targeted="only"`` attack are each image's rival, or one common target.
        draws: Whether it draws from an unseeded generator.
        litters: Whether it writes into the working directory (and calls ``np.mat``).
    """

    fills: tuple[Fill, ...] = ("batch_size", "verbose")
    outputs: Literal["logits", "probabilities"] = "logits"
    one_by_one: bool = False
    target: Literal["rival", "common"] = "rival"
    draws: bool = False
    litters: bool = False
    recipe: Recipe = "plain"

    @property
    def aims(self) -> bool:
        """Not one that has a common target, nor one that walks from an image of the target, which it is not given."""
        walks = self.access == "decisions" or self.recipe == "starts"
        return self.targeted != "no" and self.target == "rival" and not walks


@dataclass(frozen=True, kw_only=True)
class FoolboxCapability(Capability):
    """A :class:`Capability` and how Foolbox's class is called.

    Attributes:
        distance: Whether the norm is given as a ``distance``.
        constraint: Whether the norm is given as a ``constraint``.
        starts: Whether it walks from a starting point, which the door looks for.
        feed: Whether it wants a pool of images, which is the batch itself.
    """

    distance: bool = False
    constraint: bool = False
    starts: bool = False
    feed: bool = False


def find(table: Mapping[str, Capability], toolkit: str, name: str) -> Capability:
    """Look an attack up by class name, alias or short name, also one that is refused.

    Raises:
        UserError: No such attack.
    """
    found = table.get(name)
    if found is None:
        same = [entry for entry in table.values() if name in entry.aliases or name == entry.short]
        if not same:
            raise unknown(f"{toolkit} attack", name, [entry.attack for entry in table.values() if not entry.refused])
        found = same[0]
    return found


def refuse(toolkit: str, entry: Capability) -> None:
    """Raise the UserError that says why an attack cannot be declared."""
    hint = f"; use {entry.instead} instead" if entry.instead else ""
    raise UserError(f"{toolkit} {entry.attack} is refused: {entry.defect}{hint}")


def _plain(what: str, name: str, value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(_plain(what, name, item) for item in value)
    raise UserError(f"{name} of {what} must be a number, a string or a tuple of them, got {type(value).__name__}")


def _like(what: str, name: str, value: Value, default: Value) -> Value:
    """Bring a value to the type of the default, so that 50 and 50.0 are one declaration."""
    if value is None or default is None:
        return value
    kind = type(default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (kind is float or (kind is int and float(value).is_integer())):  # type: ignore[arg-type]
        return kind(value)  # type: ignore[arg-type]
    if type(value) is kind and not number:
        return value
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
    raise UserError(f"{name} of {what} must be {wanted}, got {value!r}")


def listing(*entries: Capability) -> dict[str, Any]:
    """Build a table by class name; a name may stand in it once."""
    table = {entry.attack: entry for entry in entries}
    assert len(table) == len(entries), "an attack is listed twice"
    return table


BRENDEL_BETHGE: Final[Mapping[str, Value]] = {
    "overshoot": 1.1,
    "steps": 1000,
    "lr": 1e-3,
    "lr_decay": 0.5,
    "lr_num_decay": 20,
    "momentum": 0.8,
    "binary_search_steps": 10,
}
"""Options of the same attack in both toolkits."""
