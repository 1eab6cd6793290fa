"""Load a user's model from MLflow. Loading executes the model's code."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from torch import nn

from ..errors import UserError, said
from ..redaction import without_password, without_password_of
from ..user_code import process_state
from ..user_code.python_file import World
from .exported_program import house


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

    Registered models are looked for in ``MLFLOW_REGISTRY_URI`` if that is set. Each content has a folder of its own: an
    alias that moves on disturbs nobody.

    Raises:
        UserError: No such model, a store out of reach, or no model of PyTorch.
    """
    if tracking_uri.startswith("sqlite:///") and not Path(unquote(tracking_uri.removeprefix("sqlite:///"))).is_file():
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
