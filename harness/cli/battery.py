"""The battery that a command line asks for: a suite, attacks added to it, its norms and budgets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from ..attacks.base import Attack
from ..attacks.toolkits.unlisted import UnlistedArt, UnlistedFoolbox, toolkit_attack
from ..attacks.transfer import Ensemble
from ..errors import UserError
from ..goal import Goal
from ..options import convert, literal, number, pairs
from ..planning.suite import Suite
from ..schema.eps import ANYTHING, eps_text
from ..threat import Norm, norm_named
from ..user_code.plugins import Known, absolute, split
from .parsing import declared

PROVING = ("flat linear, 2 classes", "steep linear, 10 classes", "plain network")
"""Victims that an attack which our tables do not list has to beat before it is used."""


@dataclass(frozen=True)
class Battery:
    """A suite as it was asked for.

    Attributes:
        words: What to type after ``gauntlet run`` for it.
        notes: Lines about what was left out.
    """

    suite: Suite
    words: tuple[str, ...]
    notes: tuple[str, ...] = ()


def battery(
    name: str,
    suite: Suite,
    *,
    added: Sequence[str] = (),
    eps: Sequence[str] = (),
    norms: Sequence[str] = (),
    goal: Goal | None = None,
    surrogates: Ensemble | None = None,
    named: Sequence[str] = (),
) -> Battery:
    """A suite with attacks added to it, in some norms, at budgets of the user's, with targets, transfers from others.

    ``named`` is what to type for the surrogates.

    What is asked of a model is then another battery, and has a name and a leaderboard of its own. What both have in
    common is measured once.

    Raises:
        UserError: An attack, norm or eps that cannot be read, or of which the suite has nothing.
    """
    words, notes = [absolute(name)], list[str]()
    if goal is not None:
        suite = suite.towards(goal)
        words += ["--targets", goal.text]
    if surrogates is not None:
        suite = suite.crafted_on(surrogates)
        words += named
    for text in dict.fromkeys(added):
        suite, said = with_attack(suite, text)
        notes += said
        words += ["--add-attack", absolute(text)]
    chosen = [norm_named(text) for text in norms]
    budgets = parse_eps(eps, chosen or (list(suite.attacks) if len(suite.attacks) == 1 else []))
    if len(budgets) == 1 and (plain := [text for text in eps if "=" not in text]):
        (norm,) = budgets
        if norm != "linf":
            notes.append(f"--eps {plain[0]} is of {norm}, in which suite {suite.name} attacks")
    kept = tuple(norm for norm in suite.attacks if norm in (budgets or chosen or suite.attacks))
    if missing := [norm for norm in (*chosen, *budgets) if norm not in suite.attacks]:
        raise UserError(f"suite {suite.name} attacks in {', '.join(suite.attacks)}, not in {missing[0]}")
    if budgets and (without := [norm for norm in chosen if norm not in budgets]):
        raise UserError(f"--eps says nothing of {without[0]}, which --norm asks for: add --eps {without[0]}=NUMBER")
    if out := [norm for norm in suite.attacks if norm not in kept]:
        why = "--eps" if budgets else "--norm"
        notes.append(f"left out: {', '.join(out)}, of which {why} says nothing")
    if kept == tuple(suite.attacks) and not budgets:
        return Battery(suite, tuple(words), tuple(notes))
    if budgets:
        words += [word for norm in kept for word in ("--eps", f"{norm}={','.join(map(_exact, budgets[norm]))}")]
        return Battery(suite.at({norm: budgets[norm] for norm in kept}), tuple(words), tuple(notes))
    words += [word for norm in kept for word in ("--norm", norm)]
    attacks = {norm: suite.attacks[norm] for norm in kept}
    return Battery(
        dataclasses.replace(suite, name=f"{suite.base} in {', '.join(kept)}", attacks=attacks),
        tuple(words),
        tuple(notes),
    )


def parse_eps(texts: Sequence[str], norms: Sequence[Norm] = ()) -> dict[Norm, tuple[float, ...]]:
    """Read ``8/255``, ``4/255,8/255`` or ``linf=8/255``; what names no norm is of the one of ``norms``, else of linf.

    Returns:
        By norm, ascending; empty where nothing is said.

    Raises:
        UserError: An unknown norm, one said twice, or no positive number.
    """
    found: dict[Norm, tuple[float, ...]] = {}
    for text in texts:
        name, equals, values = text.rpartition("=")
        if not equals and len(norms) > 1:
            raise UserError(f"of which norm is --eps {text}? write --eps {norms[0]}={text}")
        norm = norm_named(name) if equals else (norms[0] if norms else "linf")
        if norm in found:
            raise UserError(f"--eps: {norm} is given twice; write several values as {norm}=4/255,8/255")
        numbers = [_positive(norm, value) for value in values.split(",")]
        found[norm] = tuple(sorted(set(numbers)))
    return found


def _positive(norm: Norm, text: str) -> float:
    try:
        value = number(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"--eps takes positive numbers such as 8/255 or 0.03, got {text!r}")
    if norm == "linf" and value > 1:
        raise UserError(ANYTHING.format(text))
    return value


def _exact(eps: float) -> str:
    """An eps as it is read again to the last bit."""
    text = eps_text(eps)
    return text if number(text) == eps else repr(eps)


def with_attack(suite: Suite, text: str) -> tuple[Suite, list[str]]:
    """A suite with one more attack, in every norm that both have, and what is to be said of it.

    One that our tables do not list is called on victims whose weakness is known, and is left out where it fails.

    Raises:
        UserError: No such attack; none in any norm of the suite; one that is not listed and fails in all of them.
    """
    attack, notes = parse_attack(text), list[str]()
    norms = [norm for norm in suite.attacks if norm in attack.supported_norms]
    if not norms:
        has = ", ".join(suite.attacks)
        raise UserError(
            f"{attack.label} attacks in {', '.join(attack.supported_norms)}, and suite {suite.name} in {has}"
        )
    if isinstance(attack, UnlistedArt | UnlistedFoolbox):
        faults = _faults(attack, norms)
        norms = [norm for norm in norms if norm not in faults]
        if not norms:
            raise UserError(f"{attack.toolkit} {attack.attack} fails its self-test {'; '.join(faults.values())}")
        passed = f"{attack.toolkit} {attack.attack} passed its self-test in {', '.join(norms)}"
        notes.append(f"{passed}; no health check counts it, because our tables do not list it")
        notes += [f"{attack.label} is left out where it fails its self-test: {fault}" for fault in faults.values()]
    more = {norm: (*members, *([attack] if norm in norms else [])) for norm, members in suite.attacks.items()}
    return dataclasses.replace(suite, name=f"{suite.base} + {attack.label}", attacks=more), notes


def _faults(attack: Attack, norms: Sequence[Norm]) -> dict[Norm, str]:
    """In which norms an attack is too weak, wrong or not to be called on simple victims, and the first reason."""
    from ..selftest.run import run

    found: dict[Norm, str] = {}
    for norm in norms:
        results = run([(attack, norm)], victims=PROVING)
        if fault := next((each for each in results if not each.passed), None):
            found[norm] = f"in {norm} on the {fault.victim}: expected {fault.expected}, {fault.measured}"
    return found


def known_attacks() -> Known[Any]:
    """Attacks of ours by name, of packages, and of files: classes and declarations."""
    from .tables import own_attacks

    def is_attack(value: Any) -> bool:
        return isinstance(value, Attack) or (isinstance(value, type) and issubclass(value, Attack))

    return Known(own_attacks(), "attacks", "attack", is_attack)


def parse_attack(text: str) -> Attack:
    """Read ``NAME[:key=value,...]``, ``FILE.py:NAME[:key=value,...]`` or ``TOOLKIT:CLASS[?key=value&...]``.

    Raises:
        UserError: Unknown attack, toolkit or option.
    """
    toolkit, _, rest = text.partition(":")
    if toolkit in ("art", "foolbox"):
        name, _, settings = rest.partition("?")
        options = {key: literal(value) for key, value in pairs(settings, "&", f"{toolkit} {name}").items()}
        return toolkit_attack(toolkit, name, options)
    name, settings = split(text)
    found = known_attacks()[name]
    if isinstance(found, type):
        kind: type[Attack] = found
        return declared(kind, settings, "option")
    made: Attack = found
    if settings:
        hints = get_type_hints(type(made))
        names = [field.name for field in dataclasses.fields(made)]
        given = pairs(settings, ",", made.name, names, "option")
        made = dataclasses.replace(made, **{k: convert(v, hints[k], f"{made.name}: {k}") for k, v in given.items()})
    return made
