"""Doors to other people's models: Python files, exported programs, MLflow. What comes in runs its own code.

The only module beside :mod:`harness.tracking` that imports MLflow, and only once it is needed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from . import identity
from .environment import without_password, without_password_of
from .errors import UserError, unknown

DYNAMIC: Final = (
    "export it with a dynamic batch dimension: dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), on an example of two "
    "images or more"
)


def said(error: BaseException) -> str:
    """An exception with all that it says, on one line."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


# -- Python files --------------------------------------------------------------------------------------------------


def from_file(path: Path, factory: str, arguments: Mapping[str, Any]) -> object:
    """Run a file and call one of its functions, under a fixed seed.

    The file is run from its source as it lies there, once a process unless it changes. Modules in its folder can be
    imported while it runs and while the factory does, and are forgotten afterwards: two models may each have a
    ``net.py`` of their own.

    Raises:
        UserError: The file or the factory raised; the message names file and line. There is no such factory.
    """
    with _blaming(path), _neighbours(path.parent):
        module = _execute(path)
        make = vars(module).get(factory)
        if not callable(make):
            raise unknown(f"factory in {path}", factory, _callables(vars(module)))
        with identity.isolated(0):  # a model that draws its weights is the same one in every process
            return make(**arguments)


def sources(path: Path) -> list[tuple[str, bytes]]:
    """Name and content of a file, and of every file below its folder that it imports, directly or through another.

    Read from the import statements: what is imported by other means, or installed, is not among them.
    """
    folder = path.parent
    found: dict[Path, bytes] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found[file] = file.read_bytes()
        for name in _imported(found[file], file.relative_to(folder).parent.parts):
            stems = [folder.joinpath(*name[:depth]) for depth in range(1, len(name) + 1)]
            waiting += [stem.with_name(f"{stem.name}.py") for stem in stems]
            waiting += [stem / "__init__.py" for stem in stems]
    return [(file.relative_to(folder).as_posix(), found[file]) for file in sorted(found, key=lambda f: (f != path, f))]


def _imported(content: bytes, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Dotted names that a source imports, split; ``from a import b`` may mean the module ``a.b``."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return []  # who runs it is told
    names: list[tuple[str, ...]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            near = package[: len(package) - node.level + 1] if node.level else ()
            base = (*near, *(node.module.split(".") if node.module else ()))
            names += [(*base, alias.name) for alias in node.names]
    return names


def _execute(path: Path) -> Any:
    listed = sources(path)
    digest = hashlib.sha256(repr((str(path), listed)).encode()).hexdigest()
    name = f"gauntlet_external_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it is run: dataclasses look for their module
    try:
        exec(compile(listed[0][1], str(path), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _callables(names: Mapping[str, Any]) -> list[str]:
    """Public functions and classes that a file defines; if none, those that it imports."""
    public = [name for name, value in names.items() if callable(value) and not name.startswith("_")]
    own = [name for name in public if getattr(names[name], "__module__", None) == names["__name__"]]
    return own or public


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """A folder on the import path; what only that path could find is forgotten at the end."""
    loaded, path, silent = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    usual = {Path(entry).resolve() for entry in path} - {folder}
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # the folder is somebody else's
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = silent
        tops = {name.partition(".")[0] for name in set(sys.modules) - loaded} - loaded
        theirs = {top for top in tops if (home := _home_of(sys.modules.get(top))) is not None and home not in usual}
        for name in [name for name in sys.modules if name.partition(".")[0] in theirs]:
            del sys.modules[name]


def _home_of(module: Any) -> Path | None:
    """The folder that a top-level module was found in; None for one that is no file, and for a factory's own."""
    spec = getattr(module, "__spec__", None)
    if spec is None or spec.name.startswith("gauntlet_"):
        return None
    places = list(spec.submodule_search_locations or ()) or ([spec.origin] if spec.has_location else [])
    return Path(places[0]).resolve().parent if places and places[0] else None


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn whatever a user's code raises into one line that says where."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename or path}, line {error.lineno}: {said(error)}") from error
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename, path)]
        where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(path)
        raise UserError(f"{where}: {said(error)}") from error


def _is_theirs(file: str, path: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return file != __file__ and Path(file).is_relative_to(path.parent) and not installed


# -- exported programs ---------------------------------------------------------------------------------------------


class Housed(nn.Module):
    """A model in a house of ours; its own names and weights are those of :attr:`inner`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """As the model in it."""
        out: Tensor = self.inner(x)
        return out


class Exported(Housed):
    """A program of ``torch.export`` that behaves as a module does.

    By itself it refuses ``train`` and ``eval`` (its mode was fixed when it was exported), and its constants and the
    devices named in its graph stay where they were when the rest is moved.

    Raises:
        UserError: It takes one batch size only, or was exported in train mode.
    """

    inner: torch.fx.GraphModule

    def __init__(self, inner: torch.fx.GraphModule) -> None:
        super().__init__(inner)
        for name in ("train", "eval"):
            vars(inner).pop(name, None)  # they raise; underneath are those of every module, which only set a flag
        inner.eval()
        _check_inputs(inner)
        _check_mode(inner)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Exported:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        for graph in graphs(self):
            for name, value in constants(graph):
                setattr(graph, name, fn(value))
            for node in graph.graph.nodes:
                if "device" in node.kwargs:
                    node.update_kwarg("device", device)
                if node.target is torch.ops.aten.to.device:
                    node.update_arg(1, device)
            graph.recompile()
        return self


def graphs(model: nn.Module) -> list[torch.fx.GraphModule]:
    """Every traced graph within a model."""
    return [part for part in model.modules() if isinstance(part, torch.fx.GraphModule)]


def constants(graph: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors of a traced graph that are neither parameters nor buffers."""
    return [(name, value) for name, value in sorted(vars(graph).items()) if isinstance(value, Tensor)]


def from_export(path: Path) -> nn.Module:
    """Load a program that ``torch.export.save`` wrote.

    Raises:
        UserError: It is none, or cannot be used; see :class:`Exported`.
    """
    try:
        program = torch.export.load(path)
    except Exception as error:  # zip, pickle, JSON and the file system each have exceptions of their own
        raise UserError(f"{path} is no program that torch.export.save wrote ({said(error)})") from error
    exported: nn.Module = house(program.module(), str(path))
    return exported


def house(model: Any, name: str) -> Any:
    """Put a model that is a compiled program into a house; give back any other as it is.

    Args:
        model: What a file held or a factory returned.
        name: How to call it in errors.

    Raises:
        UserError: See :class:`Exported`.
    """
    if isinstance(model, torch.jit.ScriptModule):
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # copies of those that require one cannot be frozen any more
        return Housed(model)  # nor can it be frozen as a whole
    if isinstance(model, torch.fx.GraphModule) and "train" in vars(model):
        try:
            return Exported(model)
        except UserError as error:
            raise UserError(f"{name} {error}") from None
    return model


def _check_inputs(graph: torch.fx.GraphModule) -> None:
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in graph.graph.find_nodes(op="placeholder")]
    if len(shapes) != 1 or not shapes[0]:
        raise UserError(f"takes {len(shapes)} inputs, expected one batch of images")
    size = shapes[0][0]
    if isinstance(size, int):
        raise UserError(f"takes batches of {size} only; {DYNAMIC}")
    ranges: Mapping[Any, Any] = getattr(graph, "range_constraints", None) or {}
    allowed = ranges.get(size.node.expr)
    # torch writes 2 for a dimension without a lower bound, and takes a single image all the same
    if not size.node.expr.is_symbol or allowed is None or allowed.lower > 2 or allowed.upper < 2**31:
        bounds = f"{allowed.lower} to {allowed.upper}" if allowed is not None else str(size.node.expr)
        raise UserError(f"takes only some batch sizes ({bounds}); {DYNAMIC}")


def _check_mode(model: nn.Module) -> None:
    for graph in graphs(model):
        for node in graph.graph.nodes:
            schema: Any = getattr(node.target, "_schema", None)
            if schema is None:
                continue
            names = [argument.name for argument in schema.arguments]
            given = dict(zip(names, node.args, strict=False)) | node.kwargs
            if any(given.get(flag) is True for flag in ("train", "training")):
                raise UserError(
                    f"was exported in train mode ({schema.name}); call eval() on the model and export again"
                )


# -- MLflow --------------------------------------------------------------------------------------------------------


def quiet_environment() -> None:
    """Settings that MLflow reads when it is imported: no usage telemetry, no long retries, no chatter."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


@contextmanager
def _mlflow(store: str | None = None) -> Iterator[Any]:
    """MLflow without its warnings; and with a store as its current one, if one is given.

    A store that is only handed to its download is forgotten half-way, and the model of that name in another one comes.
    """
    quiet_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pytorch

        door: Any = mlflow
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        before = door.get_tracking_uri() if door.is_tracking_uri_set() else None
        try:
            if store is not None:
                door.set_tracking_uri(store)
            yield door
        finally:
            if store is not None:
                door.set_tracking_uri(before)  # None: to what it was without


def fetch(uri: str, tracking_uri: str, target: Path) -> Path:
    """Download a model from MLflow into a folder of ours; for the driver alone.

    Args:
        uri: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``models:/MODEL_ID`` or ``runs:/RUN_ID/PATH``.
        tracking_uri: The store; registered models are looked for in ``MLFLOW_REGISTRY_URI`` if that is set.
        target: Where downloads are kept, one folder for each content: an alias that moves on disturbs nobody.

    Returns:
        The model's folder below ``target``.

    Raises:
        UserError: No such model, a store out of reach, or no model of PyTorch.
    """
    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).is_file():
        raise UserError(f"cannot fetch {uri}: there is no tracking store {tracking_uri}")  # MLflow would make one
    part = target / f".{uuid.uuid4().hex}.part"
    part.mkdir(parents=True)
    try:
        try:
            with _mlflow(tracking_uri) as mlflow:
                found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(part)))
                flavors = sorted(mlflow.models.Model.load(str(found)).flavors)
        except Exception as error:  # MLflow's own, of its database, of HTTP, of the file system
            reason = without_password_of(tracking_uri, said(error))
            raise UserError(f"cannot fetch {uri} from {without_password(tracking_uri)} ({reason})") from error
        if "pytorch" not in flavors:
            raise UserError(f"{uri} is no PyTorch model; it can be loaded as {', '.join(flavors)}")
        assert found.is_relative_to(part)
        folder = target / hashlib.sha256(repr(contents(found)).encode()).hexdigest()[:16]
        if not folder.exists():
            found.rename(folder)
        return folder
    finally:
        shutil.rmtree(part, ignore_errors=True)


def contents(folder: Path, *parts: str) -> list[tuple[str, str]]:
    """Name and SHA-256 of every file of a folder, or of some of its subfolders."""
    files = [file for part in parts or (".",) for file in (folder / part).rglob("*") if file.is_file()]
    return [
        (file.relative_to(folder).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()) for file in sorted(files)
    ]


def load_folder(path: Path, name: str) -> nn.Module:
    """Load a model that :func:`fetch` has fetched.

    Args:
        path: Its folder.
        name: How to call it in errors.

    Raises:
        UserError: It cannot be loaded.
    """
    with _mlflow() as mlflow, _neighbours(path / "code"):  # where it keeps a model's own modules
        try:
            model = mlflow.pytorch.load_model(str(path), map_location="cpu")
        except ModuleNotFoundError as error:
            raise UserError(f"{name} cannot be loaded ({said(error)}); log it with code_paths=[...]") from error
        except Exception as error:  # a pickle may raise anything
            raise UserError(f"{name} cannot be loaded ({said(error)})") from error
    loaded: nn.Module = house(model, name)
    return loaded
