"""Doors to other people's models: exported programs, MLflow; Python files have :mod:`harness.user_code.python_file`.

The only module beside :mod:`harness.tracking` that imports MLflow, and only once it is needed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError, said
from .redaction import without_password, without_password_of
from .user_code import process_state
from .user_code.python_file import World

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
        UserError: It takes other inputs than one batch of images, or was exported in train mode.
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
        with process_state.kept():
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
    world = World([path / "code"])  # where it keeps a model's own modules
    with _mlflow() as mlflow, process_state.kept() as before, world.entered():
        try:
            model = mlflow.pytorch.load_model(str(path), map_location="cpu")
            process_state.hold(model, before)
        except ModuleNotFoundError as error:
            raise UserError(f"{name} cannot be loaded ({said(error)}); log it with code_paths=[...]") from error
        except Exception as error:  # a pickle may raise anything
            raise UserError(f"{name} cannot be loaded ({said(error)})") from error
    loaded: nn.Module = house(model, name)
    return loaded
