"""Turn command-line text into declarations."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from ..attacks.base import Attack
from ..attacks.transfer import Source
from ..errors import UserError, unknown
from ..goal import Goal, parse_goal
from ..models.registry import check_architecture
from ..options import convert, pairs
from ..training.defense import Defense
from ..training.on_trained import OnTrainedModel
from ..user_code.plugins import split
from ..victims.adaptation import Remedy

if TYPE_CHECKING:
    from ..datasets.registry import DatasetInfo
    from ..execution.ray.engine import Cluster


def parse_duration(text: str | None) -> float:
    """Read a time such as ``90s``, ``9m``, ``150m`` or ``2.5h`` as seconds; endless for None.

    Raises:
        UserError: It is not written so, or not positive.
    """
    if text is None:
        return math.inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not seconds > 0:
        raise UserError(f"a time is a number with s, m or h, e.g. 90s, 150m or 2.5h, got {text!r}")
    return seconds


_LINK = re.compile(r"(?:[\w-]+(?=[:+]|$)|[^:]*?\.py:\w*).*?(?=\+[a-zA-Z_./~]|$)", re.DOTALL)
"""One defense of a chain: a name, or a file with a name in it, and its settings. The plus sign of 1e+3 is no link."""


def parse_chain(text: str, kinds: Mapping[str, type[Defense]]) -> tuple[Defense, ...]:
    """Read ``DEFENSE`` or ``DEFENSE+DEFENSE`` (``standard+gaussian-blur:kernel=11``): each is built upon the last.

    A plus sign rather than an arrow: a shell takes ``>`` for its own.

    Raises:
        UserError: As :func:`parse_defense`; a defense that needs a base has none, or one that takes none has one.
    """
    parts, rest = [], text
    while found := _LINK.match(rest):
        parts.append(found[0])
        rest = rest[found.end() + 1 :]
    chain = tuple(parse_defense(part, kinds) for part in (parts if not rest and not text.endswith("+") else [text]))
    for place, defense in enumerate(chain):
        if isinstance(defense, OnTrainedModel):
            if place == 0:
                raise defense.baseless()
            if defense.fronted:
                raise UserError(
                    f"{defense.name} needs a second model, which only Python can name: ModelSpec(front=...)"
                )
        elif place:
            raise UserError(f"{defense.name} trains from nothing, it cannot be built upon {chain[place - 1].name}")
    return chain


def parse_defense(text: str, kinds: Mapping[str, type[Defense]]) -> Defense:
    """Read ``NAME`` or ``NAME:key=value,key=value``; a value that holds several numbers is written ``1e-3/1e-4/0``.

    NAME may be ``FILE.py:NAME``, if ``kinds`` loads files.

    Raises:
        UserError: Unknown defense or hyperparameter, a value of the wrong type or outside its range.
    """
    name, settings = split(text)
    if name not in kinds:
        raise unknown("defense", name, kinds)
    return declared(kinds[name], settings, "hyperparameter")


Declared = TypeVar("Declared", Defense, Attack)


def declared(kind: type[Declared], settings: str, noun: str) -> Declared:
    """A declaration of a class with ``key=value,key=value``.

    Raises:
        UserError: An unknown key, or a value of the wrong type or outside its range; a class that is unfinished.
    """
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserError(
            f"{getattr(kind, 'name', kind.__name__)} is unfinished: it does not define {', '.join(missing)}"
        )
    fields = [field for field in dataclasses.fields(kind) if field.init]
    hints = get_type_hints(kind)
    given = pairs(settings, ",", kind.name, [field.name for field in fields], noun)
    values = {key: convert(value, hints[key], f"{kind.name}: {key}") for key, value in given.items()}
    for field in fields:
        unset = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if unset and field.name not in values:
            raise UserError(f"{kind.name}: {field.name} has no default; name it as {kind.name}:{field.name}=...")
    return kind(**values)


def parse_surrogate(text: str, known: Mapping[str, type[Defense]], twins: int) -> Source | None:
    """Read ``ARCHITECTURE[/DEFENSE[:key=value,...]]``, a network to be trained; None where a model is named instead.

    ``twins``: of how many others of that command it is a twin, from which it differs by its seed.

    Raises:
        UserError: An unknown architecture, defense or hyperparameter; a defense that needs a base.
    """
    if re.match(r".+\.(py|pt2)\b|\w+:", text.partition("/")[0]) or text.startswith((".", "/", "~")):
        return None
    architecture, _, defense = text.partition("/")
    check_architecture(architecture)
    (trainer,) = parse_chain(defense or "standard", known)
    return Source(defense=trainer, architecture=architecture, seed_offset=1 + twins)


def goal_of(text: str, infos: Iterable[DatasetInfo]) -> Goal:
    """Read ``--targets``: ``next``, ``random``, or a class by its number or name, the same on every data set.

    Raises:
        UserError: It is none of these.
    """
    found = [parse_goal(text, info.classes) for info in infos]
    if any(goal != found[0] for goal in found):
        raise UserError(f"--targets {text} is another class on each data set: name them in commands of their own")
    return found[0]


def parse_remedy(texts: Sequence[str], stand_ins: Sequence[str]) -> Remedy | None:
    """Read ``--remedy probabilities``, ``temperature=20``, ``draws=16``, ``votes=5``, ``grid=255``, ``none``.

    ``gradients=wrong`` or ``=missing`` is one more, and ``--stand-in M=F`` belongs to it.

    Returns:
        None where no remedy is named: what the model needs is then found out. Stand-ins alone name none, for they
        cannot be found out and are no reason not to look for the rest.

    Raises:
        UserError: An unknown remedy, or a value that is no number.
    """
    if not texts:
        return None
    values: dict[str, Any] = {"stand_ins": parse_stand_ins(stand_ins)}
    for text in texts:
        name, equals, value = text.partition("=")
        if name == "none" and not equals:
            continue
        if name == "probabilities" and not equals:
            values[name] = True
        elif name == "gradients" and equals:
            values[name] = value
        elif name in ("temperature", "draws", "votes", "grid") and equals:
            values[name] = convert(value, float if name == "temperature" else int, f"remedy {name}")
        else:
            numbers = [f"{one}=NUMBER" for one in ("temperature", "draws", "votes", "grid")]
            raise unknown("remedy", text, ["none", "probabilities", "gradients=wrong", "gradients=missing", *numbers])
    return Remedy(**values)


def parse_stand_ins(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Read ``MODULE=FUNCTION`` pairs.

    Raises:
        UserError: No ``=`` in one of them.
    """
    pairs = []
    for text in texts:
        module, equals, function = text.partition("=")
        if not (module and equals and function):
            raise UserError(f"write a stand-in as MODULE=identity or MODULE=FILE.py:FUNCTION, got {text!r}")
        pairs.append((module, function))
    return tuple(pairs)


def parse_channels(text: str | None, what: str) -> tuple[float, ...]:
    """Read ``0.5`` or ``0.49,0.48,0.45``; nothing for None.

    Raises:
        UserError: Not numbers.
    """
    if text is None:
        return ()
    return tuple(convert(part.strip(), float, what) for part in text.split(","))


def parse_engine(
    engine: str, *, address: str | None, cpus: float, gpus: float | None, device: str, jobs: int | None
) -> Cluster | None:
    """What ``--engine`` and the options beside it ask of Ray; None for the processes of this machine.

    Raises:
        UserError: An option of Ray's without it, or a request that contradicts the device.
    """
    from ..execution.ray.engine import Cluster

    if engine == "local":
        if address is not None or gpus is not None or cpus != 1:
            raise UserError("--ray-address, --cpus-per-task and --gpus-per-task ask something of Ray: add --engine ray")
        return None
    kind, _, number = device.partition(":")
    if number:
        raise UserError(f"Ray hands out the GPUs: --device {kind}, not {device}")
    if gpus is None:
        gpus = 0.0 if kind == "cpu" else 1.0
    if bool(gpus) == (kind == "cpu"):
        raise UserError(f"--gpus-per-task {gpus:g} and --device {device} contradict each other")
    # where a job of Ray's own runs this command, Ray says in the environment which cluster it is
    return Cluster(address=address or os.environ.get("RAY_ADDRESS") or None, cpus=cpus, gpus=gpus, jobs=jobs)


def parse_seeds(text: str) -> list[int]:
    """Read ``0,1,2`` or ``0-4``.

    Raises:
        UserError: Not whole numbers >= 0, or a range that runs backwards.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"seeds are whole numbers such as 0,1,2 or 0-4, got {text!r}")
        start, stop = int(first), int(last if dash else first)
        if not 0 <= stop - start < 10000:
            raise UserError(f"seeds run upwards and number at most 10000, got {text!r}")
        seeds += range(start, stop + 1)
    return list(dict.fromkeys(seeds))
