"""References to users' models: ``file.py:function``, an exported program, an MLflow URI."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from ..errors import UserError, printable
from ..options import guess, pairs
from . import hubs, mlflow_model

Argument = int | float | bool | str

CHOICES: Final = (
    "FILE.py:FACTORY, FILE.pt2, models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN_ID/PATH, timm:NAME, hf:NAME, "
    "torchvision:NAME[:WEIGHTS], robustbench:NAME or onnx:FILE"
)

_PICKLES: Final = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """What a worker needs to load a model again.

    Attributes:
        place: Absolute path of the file, address in MLflow, or ``HUB:NAME``.
        factory: Function in a Python file that returns the model.
        folder: Where :func:`parse` has put a model of MLflow.
        root: The working directory when a Python file was named: its imports are looked for there too.

    Raises:
        UserError: As ``External``.
    """

    kind: Literal["python", "export", "mlflow", "hub"]
    place: str
    factory: str = ""
    arguments: tuple[tuple[str, Argument], ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    folder: str = ""
    root: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        check_normalisation(self.mean, self.std)

    @property
    def text(self) -> str:
        """What :func:`parse` makes the same reference of, but for normalisation and folder."""
        words = "&".join(f"{name}={_written(value)}" for name, value in self.arguments)
        place = f"{self.place}:{self.factory}" if self.kind == "python" else self.place
        return place + (f"?{words}" if words else "")

    @property
    def name(self) -> str:
        """Short name for people, without folders and arguments."""
        match self.kind:
            case "python":
                return f"{printable(Path(self.place).stem)}:{self.factory}"
            case "export":
                return printable(Path(self.place).stem)
            case "mlflow":
                return self.place.partition(":/")[2]
            case "hub":
                hub, _, name = self.place.partition(":")
                return f"onnx:{Path(name).stem}" if hub == "onnx" else self.place

    @property
    def file(self) -> str:
        """Name of the file, in MLflow or on a hub, without folders and endings."""
        if self.kind == "hub":
            return self.name.partition(":")[2]
        return Path(self.place).stem if self.kind != "mlflow" else self.name

    @property
    def options(self) -> tuple[tuple[str, Argument], ...]:
        """What of the arguments says which model it is: where its weights lie does not."""
        return tuple((name, value) for name, value in self.arguments if name != "state_dict")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def parse(
    text: str,
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    fetched: Path | None = None,
    tracking_uri: str | None = None,
) -> ModelReference:
    """Read what names a model, ``FILE.py:FACTORY[?key=value&key=value]`` or another of :data:`CHOICES`.

    Values are whole numbers, numbers, ``true`` or ``false``, or else texts, and may be percent-encoded. One called
    ``state_dict`` names a file of weights, loaded into what the function returns. Runs no code of the model's.
    A model of MLflow is downloaded to ``fetched`` from the store ``tracking_uri``, or else ``MLFLOW_TRACKING_URI``;
    without ``fetched`` it stays where it is.

    Raises:
        UserError: No such file, no factory, arguments or an address that cannot be read; no such model in MLflow.
    """
    if text.startswith(("models:", "runs:")):
        forms = r"models:/m-[0-9a-f]+|models:/[^/@]+(/[^/]+|@[^/]+)|runs:/[^/]+/.+"
        if not re.fullmatch(forms, text):
            wanted = "models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/PATH"
            raise UserError(f"cannot read {text!r}; write {wanted}")
        reference = ModelReference(kind="mlflow", place=text, mean=mean, std=std)
        if fetched is None:
            return reference
        store = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not store:
            raise UserError(f"in which store is {text}? name it with --tracking-uri (MLFLOW_TRACKING_URI)")
        return dataclasses.replace(reference, folder=str(mlflow_model.fetch(text, store, fetched.resolve())))
    if text.partition(":")[0] in hubs.HUBS:
        place, mark, words = text.partition("?")
        hub, _, name = place.partition(":")
        if not name:
            raise UserError(f"which model of {hub}? write {hub}:NAME")
        place = f"onnx:{_file(name)}" if hub == "onnx" else place
        arguments = _arguments(words, place) if mark else ()
        return ModelReference(kind="hub", place=place, arguments=arguments, mean=mean, std=std)
    if found := re.fullmatch(r"(.+?\.py)(?::([^?]*))?(?:\?(.*))?", text):
        file, factory, words = _file(found[1]), found[2] or "", found[3]
        if not factory.isidentifier():
            raise UserError(f"which function of {found[1]} returns the model? write {found[1]}:FACTORY")
        arguments = _arguments(words, f"{found[1]}:{factory}") if words is not None else ()
        named = {"place": file, "factory": factory, "root": str(Path.cwd())}
        return ModelReference(kind="python", arguments=arguments, mean=mean, std=std, **named)
    if text.endswith(".pt2"):
        return ModelReference(kind="export", place=_file(text), mean=mean, std=std)
    if text.lower().endswith(_PICKLES):
        raise UserError(
            f"{text} holds weights without their code, or a pickle that runs what it likes; name it beside a function "
            f"that returns the model (FILE.py:FACTORY?state_dict={text}), or export the model with torch.export.save "
            "to a .pt2"
        )
    raise UserError(f"cannot read {text!r} as a model; write {CHOICES}")


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise UserError unless both are given or neither, all are finite, and every std is positive."""
    if bool(mean) != bool(std):
        raise UserError("mean and std belong together: give both or neither (mean 0 and std 1 change nothing)")
    if not all(map(math.isfinite, (*mean, *std))):
        raise UserError(f"mean and std must be finite, got {mean} and {std}")
    if any(value <= 0 for value in std):
        raise UserError(f"std must be positive, got {listed(std)}")


def _file(text: str) -> str:
    path = Path(text).expanduser()
    if not path.is_file():
        raise UserError(f"no file {text}")
    return str(path.resolve())


def _arguments(words: str, what: str) -> tuple[tuple[str, Argument], ...]:
    found = {name: guess(unquote(value)) for name, value in pairs(words, "&", what).items()}
    if "state_dict" in found:
        found["state_dict"] = _file(unquote(pairs(words, "&", what)["state_dict"]))
    return tuple(sorted(found.items()))


def _written(value: Argument) -> str:
    return str(value).lower() if isinstance(value, bool) else quote(str(value), safe="/:,@+~ ")


def listed(values: tuple[float, ...]) -> str:
    """Numbers as the command line takes them."""
    return ",".join(str(int(value) if value == int(value) else value) for value in values) or "none"
