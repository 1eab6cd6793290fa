"""Models trained elsewhere: loading, identity by weights and code, normalisation.

Trust: loading a ``.py`` file runs it, and so may loading a model of MLflow, which is a pickle. Load only what you would
run. A ``.pt2`` file is read as data (:mod:`harness.external.archive`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import torch
from torch import Tensor, nn

from ..datasets.registry import DatasetInfo
from ..errors import UserError
from ..training.defense import Defense
from ..training.on_trained import Wrapper
from ..user_code import python_file
from ..victims.adaptation import Remedy
from ..victims.duplicates import ORIGIN
from . import exported_program, hubs, mlflow_model
from .interface import Interface
from .reference import ModelReference, check_normalisation, listed

_NONE: Final = Remedy()


@dataclass(frozen=True, kw_only=True)
class External(Defense):
    """Stands for a model that was trained elsewhere; its weights and its code are its identity.

    Attributes:
        weights: :func:`digest` of the module as it was given, before normalisation is put in front.
        program: :func:`program` of it; "" where nobody saw the code.
        mean: Subtracted from the images, one value or one a channel; ``()``: nothing is put in front.
        reference: Where it is loaded from. No part of its identity.
        called: What its owner calls it; "" leaves it to its file's name. No part of its identity.

    Raises:
        UserError: A mean without a std, a std that is not positive.
    """

    name: ClassVar[str] = "external"
    summary: ClassVar[str] = "a model trained elsewhere"
    trainable: ClassVar[bool] = False

    also: ClassVar[Mapping[str, Any]] = Wrapper.also

    weights: str = ""
    program: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    remedy: Remedy = _NONE
    interface: Interface = dataclasses.field(default=Interface(), metadata={"identity": "set"})
    reference: ModelReference | None = dataclasses.field(default=None, compare=False, metadata={"identity": False})
    called: str = dataclasses.field(default="", compare=False, metadata={"identity": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalisation(self.mean, self.std)

    def seed_identity(self) -> External:
        """The same without the code: a model draws the same random numbers in whatever form it comes."""
        return dataclasses.replace(self, program="", interface=Interface())

    def label(self, info: DatasetInfo) -> str:
        """Name for people: what its owner calls it, or else one that no two models share."""
        if self.called:
            return self.called
        parts = ["-".join(part[:8] for part in (self.weights, self.program) if part)]
        parts += [f"mean={listed(self.mean)}, std={listed(self.std)}"] if self.mean else []
        parts += [str(self.remedy)] if self.remedy else []
        parts += [f"batch={self.interface.batch}"] if self.interface.batch else []
        file = self.reference.file if self.reference is not None else self.name
        return f"{file}({', '.join(filter(None, parts))})"

    def build(self, *arguments: Any, **named: Any) -> NoReturn:
        """There is nothing to build it from: :func:`restore` loads it."""
        raise UserError("an external model is not built from its declaration; it is loaded from its reference")

    def fit(self, *arguments: Any, **named: Any) -> NoReturn:
        """It was trained elsewhere."""
        raise UserError("an external model is not trained; train it where it comes from")


def load(reference: ModelReference) -> nn.Module:
    """Load a model, on the CPU, in the mode it comes in. Runs its code, which changes nothing of ours by that.

    Raises:
        UserError: One line that says what is wrong, and in which file and line if it is the user's code.
    """
    return _load(reference)


def _load(reference: ModelReference, *, fresh: bool = False) -> nn.Module:
    match reference.kind:
        case "python":
            arguments = dict(reference.options)
            made = python_file.from_file(
                Path(reference.place), reference.factory, arguments, _root(reference), fresh=fresh
            )
            model = exported_program.house(made, reference.text)
            if (file := dict(reference.arguments).get("state_dict")) and isinstance(model, nn.Module):
                hubs.load_state(model, Path(str(file)))
        case "export":
            model = exported_program.from_export(Path(reference.place))
        case "mlflow":
            if not reference.folder:
                raise UserError(f"{reference.place} was not fetched yet")
            model = mlflow_model.load_folder(Path(reference.folder), reference.place)
        case "hub":
            named = hubs.load(reference.place, dict(reference.arguments))
            model, mean, std = named.model, named.mean, named.std
            if mean and not reference.mean:
                model = Normalised(model, mean, std)
                model.made_for = named.size
    if not isinstance(model, nn.Module):
        raise UserError(f"{reference.text} returned {type(model).__name__}, expected a torch.nn.Module")
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise UserError(
            f"{reference.text} has parameters without a size yet: call the model once before it is returned"
        )
    code = _code(reference)
    if reference.kind != "hub" or not reference.mean:  # else what is loaded without a mean has one of its own
        vars(model)[ORIGIN] = _Origin(dataclasses.replace(reference, mean=(), std=()), code)
    if not reference.mean:
        return model
    behind = Normalised(model, reference.mean, reference.std)
    vars(behind)[ORIGIN] = _Origin(reference, code)
    return behind


def _root(reference: ModelReference) -> Path | None:
    return Path(reference.root) if reference.root else None


def _code(reference: ModelReference) -> list[tuple[str, bytes]]:
    """A Python file and what it imports; of any other model nothing, since its files are not edited."""
    return python_file.sources(Path(reference.place), _root(reference)) if reference.kind == "python" else []


def describe_model(
    model: nn.Module, reference: ModelReference, remedy: Remedy = _NONE, interface: Interface | None = None
) -> External:
    """The declaration of a model that :func:`load` returned."""
    return External(
        weights=digest(bare(model)),
        program=program(reference, model, remedy),
        mean=reference.mean,
        std=reference.std,
        remedy=remedy,
        interface=interface or Interface(),
        reference=reference,
    )


def words(declared: External) -> list[str]:
    """What to type for a model: its reference, and the options that say how it is to be seen."""
    assert declared.reference is not None
    found = [declared.reference.text, *(["--name", declared.called] if declared.called else [])]
    for name in ("mean", "std"):
        if values := getattr(declared, name):
            found += [f"--{name}", listed(values)]
    if declared.interface.batch:
        found += ["--batch", str(declared.interface.batch)]
    remedy = declared.remedy
    for module, function in remedy.stand_ins:
        found += ["--stand-in", f"{module}={function}"]
    named = ["probabilities"] if remedy.probabilities else []
    named += [f"temperature={listed((remedy.temperature,))}"] if remedy.temperature != 1 else []
    named += [f"draws={remedy.draws}"] if remedy.draws > 1 else []
    named += [f"votes={remedy.votes}"] if remedy.votes else []
    named += [f"grid={remedy.grid}"] if remedy.grid else []
    named += [f"gradients={remedy.gradients}"] if remedy.gradients != "sound" else []
    for text in named or ["none"]:
        found += ["--remedy", text]
    return found


def restore(reference: ModelReference, declared: External) -> nn.Module:
    """Load a model, make sure that it is the one that was declared, and put it behind its interface.

    Raises:
        UserError: As :func:`load`; or it is another one by now.
    """
    model = load(reference)
    made = describe_model(model, reference, declared.remedy, declared.interface)
    if made.weights != declared.weights:
        raise UserError(
            f"{reference.text} has other weights than when the run began: they were changed, or differ at every load"
        )
    if made != declared:
        raise UserError(f"{reference.text} has other code than when the run began: start the run again")
    return declared.interface.around(model)


@dataclass(frozen=True)
class _Origin:
    """Where a model comes from, noted on the module itself, and the code that made it."""

    reference: ModelReference
    code: list[tuple[str, bytes]]

    def again(self, model: nn.Module, why: str) -> nn.Module:
        """Load the model once more, its code run anew, because it cannot be copied.

        Raises:
            UserError: It does not come out the same.
        """
        text = self.reference.text
        if _code(self.reference) != self.code:
            raise UserError(f"{text} has other code than when it was loaded: start again")
        made = _load(self.reference, fresh=True)  # its factory may remember what it has made
        if digest(made) != digest(model):
            raise UserError(
                f"{text} must be loaded twice, because it cannot be copied ({why}), and has other weights then: return "
                "the same ones each time, or leave out what cannot be copied"
            )
        return made


def remarks(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """What the owner of a model of a hub should know of how it was prepared."""
    if not isinstance(model, Normalised) or not model.made_for:
        return []
    mean, std = (listed(tuple(round(v, 4) for v in part.flatten().tolist())) for part in (model.mean, model.std))
    found = [f"its own configuration is put in front of it: mean {mean}, std {std}"]
    if shape[-1] != model.made_for:
        size = f"{shape[-2]}x{shape[-1]}"
        found.append(f"it was made for images of {model.made_for}x{model.made_for}, and is judged on {size}")
    return found


def bare(model: nn.Module) -> nn.Module:
    """A model without what :func:`load` put around it."""
    while isinstance(model, exported_program.Housed):
        model = model.inner
    return model


def digest(model: nn.Module) -> str:
    """Digest of a model's parameters and buffers: 16 hexadecimal digits."""
    total = hashlib.sha256()
    state = {**dict(model.named_buffers(remove_duplicate=False)), **model.state_dict()}  # not all buffers are saved
    for name, value in sorted(state.items()):
        total.update(name.encode())
        add_to_digest(total, value)
    return total.hexdigest()[:16]


def program(reference: ModelReference, model: nn.Module, remedy: Remedy = _NONE) -> str:
    """Digest of a model's code: 16 hexadecimal digits.

    Of a Python file its bytes, those of the files of its owner's that it imports
    (:func:`harness.user_code.python_file.sources`), the factory's name and its arguments; of an exported program the
    graph with its constants; of any other model of MLflow its files, weights included. Programs that a Python file
    loads count with theirs, and so do files that hold stand-in gradients. Not seen: installed packages, files that hold
    settings. :func:`harness.trust.inspection.fingerprint` sees what they do.
    """
    total = hashlib.sha256()
    given = model.inner if isinstance(model, Normalised) else model
    if reference.kind == "python":
        total.update(repr(_code(reference)).encode())
        total.update(repr((reference.factory, reference.options)).encode())
    elif reference.kind == "hub":
        inside = [part for part in model.modules() if isinstance(part, Normalised) and not reference.mean]
        numbers = [(part.mean.flatten().tolist(), part.std.flatten().tolist()) for part in inside]
        name = "onnx" if reference.place.startswith("onnx:") else reference.place
        total.update(repr((name, reference.options, numbers)).encode())
    elif not isinstance(given, exported_program.Exported):
        total.update(repr(mlflow_model.contents(Path(reference.folder), "code", "data")).encode())
    for graph in exported_program.graphs(model):
        total.update(graph.code.encode())
        for name, value in exported_program.constants(graph):
            total.update(name.encode())
            add_to_digest(total, value)
    for part in model.modules():
        if isinstance(part, torch.jit.ScriptModule):
            total.update(part.save_to_buffer())
    for _, function in remedy.stand_ins:
        if (file := Path(function.rpartition(":")[0])).is_file():
            total.update(file.read_bytes())
            if helpers := python_file.sources(file.resolve(), Path.cwd())[1:]:
                total.update(repr(helpers).encode())
    return total.hexdigest()[:16]


class Normalised(exported_program.Housed):
    """A model behind ``(x - mean) / std``, of one value or one a channel each, std positive."""

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(inner)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.training = inner.training
        self.made_for = 0
        """Side of the images that a model of a hub was made for, 0 where nothing says."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1].

        Raises:
            UserError: Neither one value nor one a channel.
        """
        for name in ("mean", "std"):
            given = getattr(self, name).shape[1]
            if given not in (1, x.shape[1]):  # broadcasting would make three channels of one
                raise UserError(f"{name} has {given} values, the images have {x.shape[1]} channels")
        out: Tensor = self.inner((x - self.mean) / self.std)
        return out


def add_to_digest(total: Any, value: object) -> None:
    """Let a value of a state count in a digest."""
    if not isinstance(value, Tensor):
        total.update(repr(value).encode())
        return
    total.update(str(value.dtype).encode() + str(tuple(value.shape)).encode())
    plain = value.dequantize() if value.is_quantized else value.to_dense() if value.is_sparse else value
    # as bytes: NumPy knows no bfloat16
    total.update(plain.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
