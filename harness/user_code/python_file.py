"""Run users' Python files with their own imports, apart from this project's modules."""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from torch import nn

from .. import determinism
from ..errors import UserError, said, unknown
from . import process_state

OURS: Final = ("gauntlet", "harness", "defenses", "suites", "reports")
"""Names of ours that a user's own modules may have too."""

_HOME: Final = Path(__file__).resolve().parents[2]
_INSTALLED: Final = {"site-packages", "dist-packages"}
_SHARED: Final = frozenset({*sys.stdlib_module_names, "torch", "numpy"})
"""What a neighbour of the same name does not replace once it is loaded: the standard library, and what loads once."""


# -- what is run, and where its imports are found ----------------------------------------------------------------------


def _placed(path: Path) -> tuple[Path, str]:
    """The folder that a file's package lies in, and its dotted name there; of a file in no package, its own folder."""
    base = path.parent
    while (base / "__init__.py").is_file() and base != base.parent:
        base = base.parent
    parts = path.relative_to(base).with_suffix("").parts
    return base, ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _in_package(path: Path) -> bool:
    return (path.parent / "__init__.py").is_file()


def _places(path: Path, root: Path | None) -> tuple[list[Path], list[Path]]:
    """Folders that a file's imports are looked for in: before those of what is installed, and after them.

    First its own, or that of its package, then the working directory. The folder within the package comes last: there
    a module may have the name of an installed one that it uses.
    """
    base, _ = _placed(path)
    first = list(dict.fromkeys([base, *([root.resolve()] if root else [])]))
    first = [folder for folder in first if folder.name not in _INSTALLED]
    return first, [folder for folder in [path.parent] if folder not in first]


def sources(path: Path, root: Path | None = None) -> list[tuple[str, bytes]]:
    """Name and content of a file, and of every file of its owner's that it imports, directly or through another.

    That is, of those below its folder (of a file in a package, below the folder that the package lies in) and below
    ``root``, each named from there. Read from the import statements: what is imported by other means, or installed, is
    not among them.
    """
    base, _ = _placed(path)
    first, last = _places(path, root)
    places = [*first, *last]
    found: dict[Path, tuple[Path, bytes]] = {}
    waiting = [(path, base), *_packages(path, base)]
    while waiting:
        file, place = waiting.pop()
        if file in found or not file.is_file():
            continue
        found[file] = place, file.read_bytes()
        for name, near in _imported(found[file][1], file.relative_to(place).parent.parts):
            for folder in [place] if near else _homes(name[0], places):
                stems = [folder.joinpath(*name[:depth]) for depth in range(1, len(name) + 1)]
                waiting += [(stem.with_name(f"{stem.name}.py"), folder) for stem in stems]
                waiting += [(stem / "__init__.py", folder) for stem in stems]
    order = sorted(found, key=lambda file: (file != path, file.relative_to(found[file][0])))
    return [(file.relative_to(found[file][0]).as_posix(), found[file][1]) for file in order]


def _packages(path: Path, base: Path) -> list[tuple[Path, Path]]:
    """What is run before a file of a package is."""
    return [(folder / "__init__.py", base) for folder in path.parents if folder != base and folder.is_relative_to(base)]


def _homes(top: str, places: Sequence[Path]) -> list[Path]:
    """Which of some folders a top-level name is found in: the first, or all that have a folder without code of it."""
    own = [place for place in places if not (top in OURS and place == _HOME)]
    for place in own:
        if (place / f"{top}.py").is_file() or (place / top / "__init__.py").is_file():
            return [place]
    return [place for place in own if (place / top).is_dir()]


def _imported(content: bytes, package: tuple[str, ...]) -> list[tuple[tuple[str, ...], bool]]:
    """Dotted names that a source imports, split, and whether relatively; ``from a import b`` may mean ``a.b``."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return []  # who runs it is told
    names: list[tuple[tuple[str, ...], bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(tuple(alias.name.split(".")), False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            near = package[: max(len(package) - node.level + 1, 0)] if node.level else ()
            base = (*near, *(node.module.split(".") if node.module else ()))
            names += [((*base, alias.name), bool(node.level)) for alias in node.names]
    return names


# -- a user's modules, apart from ours ---------------------------------------------------------------------------------


class _Source(SourceFileLoader):
    """Loads a user's module: from its source as it lies there, and so that its later imports are the user's too."""

    def __init__(self, name: str, path: str, world: World) -> None:
        super().__init__(name, path)
        self.world = world

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)

    def exec_module(self, module: ModuleType) -> None:
        self.world.furnish(module)
        with process_state.kept() if self.world.late else nullcontext():
            super().exec_module(module)


class _Ours(Loader):
    """Gives a user's code a module of ours, the very same that we have."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        with self.world.left():
            module = importlib.import_module(spec.name)
        self.spec = module.__spec__
        if spec.name == "gauntlet":
            _serve_everywhere(module)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class World:
    """The modules of one user's model, and where its imports are found.

    While it is entered, a name means the user's module where there is one, also a name of ours, and else what is
    installed; ``sys.argv`` holds the file's name alone. When it is left, ``sys.modules`` and ``sys.path`` are what they
    were, and what the user's code has put there waits for the next time. Modules that are installed stay.

    An ``import`` statement in the user's files enters it by itself: also one within ``forward``, long after the model
    was made. ``importlib.import_module`` and pickles find the user's modules only while a file is run or a factory
    called; later they find what is installed, ours among it.

    Modules in the ``first`` folders come before installed ones, in the ``last`` after them. ``package`` is a name that
    means the user's, whatever has it.
    """

    def __init__(self, first: Sequence[Path], last: Sequence[Path] = (), program: str = "", package: str = "") -> None:
        self.first = [str(folder) for folder in first]
        self.last = [str(folder) for folder in last]
        self.modules: dict[str, ModuleType] = {}
        self.module: ModuleType | None = None
        self.settings: dict[str, Any] = {}
        self.late = False
        self._package = package
        self._tops: set[str] = set()  # top-level names that are the user's
        self._apart: set[str] = set()  # and those that outside may mean something else
        self._beside: set[str] | None = None  # names that their folders hold
        self._path: list[str] | None = None
        self._argv = [program]
        self._active = False
        self._builtins: dict[str, Any] = {}
        self._outside: tuple[list[str], list[str], list[str], bool, Any] = ([], [], [], False, None)
        self._before: dict[str, ModuleType] = {}
        self._usual: set[Path] = set()

    def owns(self, file: str) -> bool:
        """Whether a file is the user's, rather than installed or ours."""
        path = Path(file)
        if _INSTALLED & set(path.parts) or any(path.is_relative_to(_HOME / name) for name in OURS):
            return False
        return any(path.is_relative_to(folder) for folder in (*self.first, *self.last))

    def furnish(self, module: ModuleType) -> None:
        """Let the import statements of a module that is about to be run be those of this world."""
        self._refresh()
        vars(module)["__builtins__"] = self._builtins

    @contextmanager
    def entered(self, late: bool = False) -> Iterator[None]:
        """Let names mean the user's modules for a block."""
        if self._active:
            yield
            return
        self.late = late
        self._enter()
        _ENTERED.append(self)
        try:
            yield
        finally:
            _ENTERED.pop()
            self._leave()

    @contextmanager
    def left(self) -> Iterator[None]:
        """Let names mean what they mean outside, for a block within."""
        self._leave()
        try:
            yield
        finally:
            self._enter()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Find a module of the user's, or one of ours that the user has none in place of; None leaves it to others."""
        top = name.partition(".")[0]
        if path is None:
            if name in sys.builtin_module_names:
                return None
            known = {*self._usual, _HOME}
            spec = PathFinder.find_spec(
                name, [e for e in sys.path if name not in OURS or Path(e).resolve() not in known]
            )
            home = None if spec is None else _home_of(spec)
            if home is None or home in self._usual:
                return ModuleSpec(name, _Ours(self)) if name in OURS else None
            self._tops.add(name)
        elif top in self._tops:
            spec = PathFinder.find_spec(name, path)
            if spec is not None and top in OURS and Path(spec.origin or "").is_relative_to(_HOME / top):
                spec = None  # it lies in a package of ours that theirs lacks, and is not to be run as theirs
        else:
            spec = None
        if spec is None:
            return ModuleSpec(name, _Ours(self)) if top in OURS and _is_ours(name) else None
        if type(spec.loader) is SourceFileLoader:
            spec.loader = _Source(spec.loader.name, spec.loader.path, self)
        return spec

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """The import statement: of a user's module at any time, and of any module while this world is entered."""
        top = name.partition(".")[0]
        if self._active:
            outside = self.left() if self._is_our_code(globals) else nullcontext()
        elif not level and top not in self._apart and top in sys.modules:
            outside = nullcontext()
        else:
            outside = self.entered(late=True)
        with outside:
            real = self._outside[4] if self._active else builtins.__import__
            found: ModuleType = real(name, globals, locals, fromlist, level)
            return found

    def _is_our_code(self, names: Mapping[str, Any] | None) -> bool:
        name = str((names or {}).get("__name__"))
        return name.partition(".")[0] in OURS and getattr(self._before.get(name), "__dict__", None) is names

    def _refresh(self) -> None:
        self._builtins.update({**vars(builtins), "__import__": self._import})

    def _enter(self) -> None:
        self._outside = (sys.path, list(sys.path), sys.argv, sys.dont_write_bytecode, builtins.__import__)
        self._before = dict(sys.modules)
        self._usual = {Path(entry).resolve() for entry in sys.path} - {
            Path(p).resolve() for p in self.first + self.last
        }
        if self._beside is None:
            self._beside = {name for folder in self.first for name in _modules_in(folder)} - _SHARED
        self._apart = {*OURS, *self._tops, *self._beside, self._package}
        for name in self._before:
            if name.partition(".")[0] in self._apart:
                del sys.modules[name]
        sys.modules.update(self.modules)
        sys.path[:] = self._path or [*self.first, *(p for p in sys.path if p not in self.first), *self.last]
        sys.argv = list(self._argv)
        sys.dont_write_bytecode = True  # the folder is somebody else's
        sys.meta_path.insert(0, self)
        builtins.__import__ = self._import
        importlib.invalidate_caches()
        self._active = True

    def _leave(self) -> None:
        self._active = False
        self._path = list(sys.path)
        after = dict(sys.modules)
        made_up = {name for name in after.keys() - self._before.keys() if _is_made_up(after[name])}
        own = {*self._apart, *self._tops, *(name for name in made_up if "." not in name)}
        self.modules = {
            name: module
            for name, module in after.items()
            if name.partition(".")[0] in own or self._before.get(name, module) is not module
        }
        for name in self.modules:
            del sys.modules[name]
        sys.modules.update(self._before)
        sys.path, content, sys.argv, sys.dont_write_bytecode, builtins.__import__ = self._outside
        sys.path[:] = content
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        self._refresh()


_ENTERED: Final[list[World]] = []
"""The worlds that are entered now, the innermost last."""


def _serve_everywhere(gauntlet: ModuleType) -> None:
    """Let what ``gauntlet.NAME`` imports at its first use be ours, also where a user's file is the first to ask."""
    names = vars(gauntlet)
    ours = names["__getattr__"]
    if ours.__module__ == __name__:
        return

    def found(name: str) -> Any:
        with _ENTERED[-1].left() if _ENTERED and _ENTERED[-1]._active else nullcontext():
            return ours(name)

    names["__getattr__"] = found


def _modules_in(folder: str) -> set[str]:
    """Names of the modules and packages that a folder holds."""
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name.removesuffix(".py")
                for entry in entries
                if entry.name.endswith(".py") or (entry.is_dir() and os.path.isfile(f"{entry.path}/__init__.py"))  # noqa: PTH113
            }
    except OSError:
        return set()


def _is_made_up(module: object) -> bool:
    """Whether a module was found nowhere, but made by code: in place of a package that is not installed, say."""
    return getattr(module, "__spec__", None) is None and getattr(module, "__file__", None) is None


def _is_ours(name: str) -> bool:
    stem = _HOME.joinpath(*name.split("."))
    return stem.with_name(f"{stem.name}.py").is_file() or (stem / "__init__.py").is_file()


def _home_of(spec: ModuleSpec) -> Path | None:
    """The folder that a top-level module was found in; None for one that is no file."""
    place = next(iter(spec.submodule_search_locations or ()), spec.origin if spec.has_location else None)
    return Path(place).resolve().parent if place else None


# -- running a file ----------------------------------------------------------------------------------------------------

_WORLDS: Final[dict[str, World]] = {}
_FRESH: Final = itertools.count()


def from_file(
    path: Path, factory: str, arguments: Mapping[str, Any], root: Path | None = None, *, fresh: bool = False
) -> object:
    """Run a file and call one of its functions, under a fixed seed.

    The file is run from its source as it lies there, once a process unless it or what it imports changes. Modules in
    its folder and in the working directory can be imported, also where ours have their names, and other code never sees
    them: two models may each have a ``net.py`` of their own. A file in a package (its folder has an ``__init__.py``) is
    run as a module of that package. See :class:`World`.

    What the code sets in the process (:func:`harness.user_code.process_state.kept`) holds until the factory returns;
    but for the default dtype, which the model finds again whenever it is called, nothing of it is left then.

    Raises:
        UserError: The file or the factory raised; the message names file and line. There is no such factory.
    """
    with _run(path, root, fresh) as (module, before):
        make = vars(module).get(factory)
        if not callable(make):
            raise unknown(f"factory in {path}", factory, _callables(vars(module)))
        _check_call(make, factory, path, arguments)
        with determinism.isolated(0):  # a model that draws its weights is the same one in every process
            made: object = make(**arguments)
        process_state.hold(made, before)
        return made


def _check_call(make: Any, name: str, path: Path, arguments: Mapping[str, Any]) -> None:
    """See that a factory is one, and that it was given what it takes.

    Raises:
        UserError: It is a model itself, or takes other arguments.
    """
    if isinstance(make, nn.Module):
        raise UserError(f"{name} in {path} is a model; name a function that returns it, so that it can be made again")
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # of native code
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{name}{signature} in {path}: {error}; arguments are given as {name}?NAME=VALUE") from None


def function_of(path: Path, name: str, root: Path | None = None) -> Any:
    """A function of a file that is run as :func:`from_file` does.

    Raises:
        UserError: As :func:`from_file`.
    """
    with _run(path, root) as (module, _):
        function = vars(module).get(name)
        if not callable(function):
            raise unknown(f"function in {path}", name, _callables(vars(module)))
        return function


def namespace_of(path: Path, root: Path | None = None) -> dict[str, Any]:
    """What a file that is run as :func:`from_file` does defines, by name.

    Raises:
        UserError: The file cannot be read, or raised.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    with _run(path, root) as (module, _):
        return vars(module)


@contextmanager
def _run(path: Path, root: Path | None, fresh: bool = False) -> Iterator[tuple[ModuleType, dict[str, Any]]]:
    """A file as a module, for a block in which its world is entered, with the settings that there were before."""
    listed = sources(path, root)
    digest = hashlib.sha256(repr((str(path), str(root or ""), listed)).encode()).hexdigest()[:16]
    world = None if fresh else _WORLDS.get(digest)
    if world is None:
        package = _placed(path)[1].partition(".")[0] if _in_package(path) else ""
        world = World(*_places(path, root), program=str(path), package=package)
    with _blaming(path, world), process_state.kept() as before:
        process_state.assume(world.settings)  # as the file left them when it was run
        with world.entered():
            if world.module is None:
                name = f"gauntlet_external_{digest}" + (f"_{next(_FRESH)}" if fresh else "")
                world.module = _execute(path, listed[0][1], name, world)
                world.settings = process_state.changed(before)
                if fresh:
                    sys.modules.pop(name, None)
                else:
                    _WORLDS[digest] = world
            yield world.module, before


def _execute(path: Path, content: bytes, alias: str, world: World) -> ModuleType:
    if _in_package(path):
        return importlib.import_module(_placed(path)[1])
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    world.furnish(module)
    sys.modules[alias] = module  # before it is run: dataclasses look for their module
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[alias]
        raise
    return module


def _callables(names: Mapping[str, Any]) -> list[str]:
    """Public functions and classes that a file defines; if none, those that it imports."""
    public = [name for name, value in names.items() if callable(value) and not name.startswith("_")]
    own = [name for name in public if getattr(names[name], "__module__", None) == names["__name__"]]
    return own or public


@contextmanager
def _blaming(path: Path, world: World) -> Iterator[None]:
    """Turn whatever a user's code raises into one line that says where."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename or path}, line {error.lineno}: {said(error)}") from error
    except (Exception, SystemExit) as error:
        frames: Iterable[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
        lines = [f"{frame.filename}, line {frame.lineno}" for frame in frames if world.owns(frame.filename)]
        raise UserError(f"{lines[-1] if lines else path}: {said(error)}") from error
