"""Plug-ins: what users' files and installed packages add to defenses, attacks, suites, data sets, models, checks.

A file's is named ``FILE.py:NAME``. A package offers its own by entry points, in the groups ``gauntlet.defenses`` and so
on (:data:`GROUPS`); it is named as they are. Loading either runs its code.

What was declared with a user's class is known by the class's name, the digest of its source and its fields, wherever
the source lies. It is pickled by where that is: another process loads the source anew, and notices if it was changed.
"""

from __future__ import annotations

import copyreg
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from ..errors import UserError, said, unknown
from ..models.registry import USER_ARCHITECTURES, Builder, check_architecture
from . import python_file

T = TypeVar("T")

Group = Literal["defenses", "attacks", "suites", "datasets", "models", "checks"]
GROUPS: Final[tuple[Group, ...]] = ("defenses", "attacks", "suites", "datasets", "models", "checks")

_FILE: Final = re.compile(r"(?P<file>[^:?]*\.py)(?::|(?=[?]|$))(?P<name>[^:?]*)(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True)
class Origin:
    """Where a plug-in is from.

    Attributes:
        place: Absolute path of the file; of what a package offers ``GROUP:NAME``.
        packaged: Whether a package offers it.
        root: The working directory when a file was named: its imports are looked for there too.
        digest: Of the source: of the file and what it imports of its owner's, or of the package.
    """

    place: str
    packaged: bool = False
    root: str = dataclasses.field(default="", compare=False)
    digest: str = ""

    def text(self, name: str) -> str:
        """What to type for that name of it; "" for what a package defines and does not offer."""
        if self.packaged:
            return "" if name else self.place.partition(":")[2]
        return f"{self.place}:{name}"


class Plugin(NamedTuple):
    """Something that a plug-in defines: the thing, its name there, and where that is."""

    value: Any
    name: str
    origin: Origin

    @property
    def text(self) -> str:
        """What to type for it."""
        return self.origin.text(self.name)


def split(text: str) -> tuple[str, str]:
    """What is named, and the settings after the next colon: ``FILE.py:NAME:key=value`` or ``NAME:key=value``."""
    if found := _FILE.fullmatch(text):
        return f"{found['file']}:{found['name']}", found["rest"].removeprefix(":")
    name, _, settings = text.partition(":")
    return name, settings


def absolute(text: str) -> str:
    """The same name, with the place of its file from the root."""
    found = _FILE.fullmatch(text)
    return text if found is None else f"{Path(found['file']).expanduser().resolve()}:{found['name']}{found['rest']}"


def is_file(text: str) -> bool:
    """Whether a text names something in a Python file."""
    return _FILE.fullmatch(text) is not None


def from_file(text: str, what: str, kind: Callable[[Any], bool]) -> Plugin:
    """What ``FILE.py:NAME`` names; ``what`` of a ``kind`` it must be.

    Raises:
        UserError: No such file or name, or it is something else; the file raised.
    """
    found = _FILE.fullmatch(text)
    assert found is not None
    path = Path(found["file"]).expanduser().resolve()
    origin = Origin(str(path), root=str(Path.cwd()))
    names = _namespace(origin)
    origin = dataclasses.replace(origin, digest=_digest(origin))
    name = found["name"]
    public = {each: value for each, value in names.items() if not each.startswith("_") and kind(value)}
    defined = (type, types.FunctionType)
    fitting = [k for k, value in public.items() if not isinstance(value, defined) or _own(value, names, origin)]
    if not name:
        choices = ", ".join(f"{found['file']}:{each}" for each in fitting) or f"none: the file defines no {what}"
        raise UserError(f"which {what} of {found['file']}? choose from {choices}")
    if name not in names:
        raise unknown(f"{what} in {found['file']}", name, fitting or [f"none: the file defines no {what}"])
    if not kind(names[name]):
        choices = f"; choose from {', '.join(fitting)}" if fitting else ""
        raise UserError(f"{text} is no {what}, but {_described(names[name])}{choices}")
    return Plugin(names[name], name, origin)


def offered(group: Group) -> dict[str, importlib.metadata.EntryPoint]:
    """What installed packages offer, by name; nothing is imported.

    Raises:
        UserError: Two packages offer something else under one name.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for point in _points(group):
        if found.setdefault(point.name, point).value != point.value:
            raise UserError(
                f"two packages offer {group} named {point.name!r}: {_package(found[point.name])} and {_package(point)}"
            )
    return dict(sorted(found.items()))


def from_package(group: Group, name: str, what: str, kind: Callable[[Any], bool]) -> Plugin:
    """What a package offers under a name; ``what`` of a ``kind`` it must be.

    Raises:
        UserError: It cannot be imported, or is something else.
    """
    origin = Origin(f"{group}:{name}", packaged=True)
    names = _namespace(origin)
    origin = dataclasses.replace(origin, digest=_digest(origin))
    point = offered(group)[name]
    if not kind(names[""]):
        raise UserError(f"{name} of {_package(point)} ({point.value}) is no {what}, but {_described(names[''])}")
    return Plugin(names[""], "", origin)


def whence(group: Group, name: str) -> str:
    """Who offers a name: a package with its version, or "gauntlet"."""
    points = offered(group)
    return _package(points[name]) if name in points else "gauntlet"


def find(origin: Origin, name: str) -> Any:
    """What a plug-in defines under a name; of a package "" is what it offers.

    Raises:
        UserError: It cannot be loaded any more, or has other code.
    """
    return _namespace(origin)[name]


class Known(Mapping[str, T]):
    """What can be named: ours, what packages offer, and anything in a file.

    Ours come first; names are listed without importing a package, which is imported when its offer is asked for.

    Args:
        ours: By name.
        group: Where packages offer more.
        what: One of them, in a word, for complaints.
        kind: What a plug-in must be.
        made: From a plug-in to what the mapping holds.
    """

    def __init__(
        self,
        ours: Mapping[str, T],
        group: Group,
        what: str,
        kind: Callable[[Any], bool],
        made: Callable[[Plugin], T] = lambda plugin: plugin.value,
    ) -> None:
        self._ours, self._group, self._what, self._kind, self._made = ours, group, what, kind, made

    def __getitem__(self, name: str) -> T:
        """What a name means.

        Raises:
            UserError: There is none; the message lists the choices. Its code cannot be run, or is something else.
        """
        if name in self._ours:
            return self._ours[name]
        if is_file(name):
            plugin = from_file(name, self._what, self._kind)
        elif name in offered(self._group):
            plugin = from_package(self._group, name, self._what, self._kind)
        else:
            raise unknown(self._what, name, self)
        called = getattr(plugin.value, "name", None)
        own = isinstance(plugin.value, type) or origin_of(type(plugin.value)) or self._what == "suite"
        if own and isinstance(called, str) and called in self._ours:
            raise UserError(f"{name} calls itself {called}, which is the name of a {self._what} of ours: rename it")
        return self._made(plugin)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._ours or is_file(name) or name in offered(self._group))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._ours, *offered(self._group))))

    def __len__(self) -> int:
        return len(list(iter(self)))


# -- loading -----------------------------------------------------------------------------------------------------------


@cache
def _points(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=f"gauntlet.{group}"))


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.module


def _namespace(origin: Origin) -> Mapping[str, Any]:
    """What a plug-in's module defines, its classes known to pickle; under "" what a package offers.

    Raises:
        UserError: It cannot be loaded, or has another source than ``origin`` says.
    """
    digest = _digest(origin)
    if origin.digest not in ("", digest):
        raise UserError(f"{origin.place} has other code than when the run began: start the run again")
    origin = dataclasses.replace(origin, digest=digest)
    names: Mapping[str, Any]
    if not origin.packaged:
        names = python_file.namespace_of(Path(origin.place), Path(origin.root) if origin.root else None)
    else:
        group, _, name = origin.place.partition(":")
        point = next((point for point in _points(group) if point.name == name), None)
        if point is None:
            raise UserError(f"no installed package offers {group} named {name!r}")
        try:
            value = point.load()
            names = {**vars(importlib.import_module(point.module)), "": value}
        except Exception as error:  # a package may raise anything
            raise UserError(f"{name} of {_package(point)} cannot be loaded ({said(error)})") from error
    for name, value in names.items():
        if name and isinstance(value, type) and dataclasses.is_dataclass(value) and _own(value, names, origin):
            _adopt(value, *_offer_of(value, name, origin))
    return names


def _offer_of(kind: type, name: str, origin: Origin) -> tuple[str, Origin]:
    """What a class is called where it is offered, which need not be where its module was first asked for."""
    for group in GROUPS if origin.packaged else ():
        for point in _points(group):
            if (point.module, point.attr) == (kind.__module__, kind.__qualname__):
                return "", dataclasses.replace(origin, place=f"{group}:{point.name}")
    return name, origin


def _digest(origin: Origin) -> str:
    """Digest of a plug-in's source: 16 hexadecimal digits."""
    if not origin.packaged:
        path = Path(origin.place)
        if not path.is_file():
            raise UserError(f"no file {origin.place}")
        files = python_file.sources(path, Path(origin.root) if origin.root else None)
        return hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    group, _, name = origin.place.partition(":")
    return _package_digest(next((p.module.partition(".")[0] for p in _points(group) if p.name == name), ""))


@cache
def _package_digest(top: str) -> str:
    """Of every Python file of an installed package."""
    spec = importlib.util.find_spec(top) if top else None
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    found = {file.relative_to(folder).as_posix(): file for folder in folders for file in folder.rglob("*.py")}
    if spec is not None and not found and spec.origin:
        found = {Path(spec.origin).name: Path(spec.origin)}
    total = [(name, file.read_bytes()) for name, file in sorted(found.items())]
    return hashlib.sha256(repr(total).encode()).hexdigest()[:16]


def _own(value: Any, names: Mapping[str, Any], origin: Origin) -> bool:
    """Whether a class or function is defined by the plug-in, rather than imported from what is installed or ours."""
    module = getattr(value, "__module__", None)
    if origin.packaged:
        return str(module).partition(".")[0] == str(names["__name__"]).partition(".")[0]
    files = python_file.sources(Path(origin.place), Path(origin.root) if origin.root else None)
    stems = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name, _ in files}
    return module in {names["__name__"], *stems}


def _described(value: Any) -> str:
    if isinstance(value, type):
        bases = ", ".join(base.__name__ for base in value.__bases__)
        return f"a class derived from {bases}"
    return "a function" if isinstance(value, types.FunctionType) else f"a {type(value).__name__}"


# -- classes -----------------------------------------------------------------------------------------------------------


def origin_of(kind: type) -> Plugin | None:
    """The plug-in that a class is from; None for ours, and for what only Python has seen."""
    found: Plugin | None = vars(kind).get("plugin")
    return found


def _adopt(kind: type, name: str, origin: Origin) -> None:
    """Let a class of a plug-in's count with its source in identities, and be pickled by where that is."""
    if "plugin" in vars(kind):
        return
    own: Any = kind
    own.plugin = Plugin(kind, name, origin)
    own.also = {**getattr(kind, "also", {}), "source": origin.digest}
    if not isinstance(vars(kind).get("name"), str):
        own.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower()
    copyreg.pickle(kind, _reduce)


def _reduce(made: Any) -> tuple[Any, ...]:
    plugin = origin_of(type(made))
    assert plugin is not None
    reduced: Any = object.__reduce_ex__(made, 2)
    _, (_, *arguments), *rest = reduced
    return (_new, (plugin.origin, plugin.name, *arguments), *rest)


def _new(origin: Origin, name: str, *arguments: Any) -> Any:
    kind = _namespace(origin)[name]
    return kind.__new__(kind, *arguments)


# -- architectures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """A plug-in's architecture, as other processes are told of it."""

    name: str
    builder: str
    origin: Origin

    def register(self) -> None:
        """Let it be built by its name in this process.

        Raises:
            UserError: The plug-in cannot be loaded any more, or has other code.
        """
        if self.name not in USER_ARCHITECTURES:
            build: Builder = _namespace(self.origin)[self.builder]
            USER_ARCHITECTURES[self.name] = build
            _ARCHITECTURES[self.name] = self


_ARCHITECTURES: Final[dict[str, Architecture]] = {}


def architecture(text: str) -> str:
    """The name, with its digest, of a network that a file or a package builds; any other text as it is.

    ``NAME(shape, classes)`` returns the module: shape ``(C, H, W)``, logits ``(N, classes)``.

    Raises:
        UserError: It cannot be loaded, or cannot be called.
    """
    if is_file(text):
        plugin = from_file(text, "model", callable)
    elif text in offered("models") and text not in _ARCHITECTURES:
        plugin = from_package("models", text, "model", callable)
    else:
        check_architecture(text, offered("models"))
        return text
    short = plugin.name or text
    made = Architecture(f"{short}@{plugin.origin.digest[:8]}", plugin.name, plugin.origin)
    made.register()
    return made.name


def architecture_argument(name: str) -> str:
    """What to type for an architecture."""
    made = _ARCHITECTURES.get(name)
    return made.origin.text(made.builder) if made is not None else name


def architectures() -> tuple[Architecture, ...]:
    """Every architecture of plug-ins that was named in this process."""
    return tuple(_ARCHITECTURES.values())
