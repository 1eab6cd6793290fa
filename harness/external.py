"""Models of other people: named on the command line, loaded again in every worker, known by weights and code.

Trust: loading a ``.py`` file runs it, and so may loading a model of MLflow or a ``.pt2`` file, which can hold pickles.
Load only what you would run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NoReturn
from urllib.parse import quote, unquote

import torch
from torch import Tensor, nn

from . import identity, registry
from .data import DatasetInfo
from .errors import UserError, describe
from .remedy import Remedy
from .training import Trainer
from .victim import Victim, VictimError

Argument = int | float | bool | str

CHOICES: Final = "FILE.py:FACTORY, FILE.pt2, models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/PATH"

_PICKLES: Final = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".safetensors")

_NONE: Final = Remedy()


@dataclass(frozen=True, kw_only=True)
class External(Trainer):
    """Stands for a model that was trained elsewhere; its weights and its code are its identity.

    Attributes:
        weights: :func:`digest` of the module as it was given, before normalisation is put in front.
        program: :func:`program` of it; "" where nobody saw the code.
        mean: Subtracted from the images, one value or one a channel; ``()``: nothing is put in front.
        std: Then divides them.
        remedy: How attacks are to see it.
        reference: Where it is loaded from. No part of its identity.

    Raises:
        UserError: A mean without a std, a std that is not positive.
    """

    name: ClassVar[str] = "external"
    summary: ClassVar[str] = "a model trained elsewhere"
    trainable: ClassVar[bool] = False

    epochs: int | None = 0
    weights: str = ""
    program: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    remedy: Remedy = _NONE
    reference: Reference | None = dataclasses.field(default=None, compare=False, metadata={"identity": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalisation(self.mean, self.std)

    def resolve(self, info: DatasetInfo) -> External:
        """Nothing is left to the data set: nothing is trained."""
        return dataclasses.replace(self, epochs=0)

    def seed_identity(self) -> External:
        """The same without the code: a model draws the same random numbers in whatever form it comes."""
        return dataclasses.replace(self, program="")

    def label(self, info: DatasetInfo) -> str:
        """Name for people: no two models share it."""
        parts = ["-".join(part[:8] for part in (self.weights, self.program) if part)]
        parts += [f"mean={_listed(self.mean)}, std={_listed(self.std)}"] if self.mean else []
        parts += [str(self.remedy)] if self.remedy else []
        return f"{self.name}({', '.join(filter(None, parts))})"

    def build(self, *arguments: Any, **named: Any) -> NoReturn:
        """There is nothing to build it from: :func:`restore` loads it."""
        raise UserError("an external model is not built from its declaration; it is loaded from its reference")

    def fit(self, *arguments: Any, **named: Any) -> NoReturn:
        """It was trained elsewhere."""
        raise UserError("an external model is not trained; train it where it comes from")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a worker needs to load a model again.

    Attributes:
        kind: ``"python"``, ``"export"`` or ``"mlflow"``.
        place: Absolute path of the file, or address in MLflow.
        factory: Function in a Python file that returns the model.
        arguments: What it is called with, by name.
        mean: As :attr:`External.mean`.
        std: As :attr:`External.std`.
        folder: Where :func:`parse` has put a model of MLflow.

    Raises:
        UserError: As :class:`External`.
    """

    kind: Literal["python", "export", "mlflow"]
    place: str
    factory: str = ""
    arguments: tuple[tuple[str, Argument], ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    folder: str = ""

    def __post_init__(self) -> None:
        check_normalisation(self.mean, self.std)

    @property
    def text(self) -> str:
        """What :func:`parse` makes the same reference of, but for normalisation and folder."""
        if self.kind != "python":
            return self.place
        words = "&".join(f"{name}={_written(value)}" for name, value in self.arguments)
        return f"{self.place}:{self.factory}" + (f"?{words}" if words else "")

    @property
    def name(self) -> str:
        """Short name for people, without folders and arguments."""
        match self.kind:
            case "python":
                return f"{Path(self.place).stem}:{self.factory}"
            case "export":
                return Path(self.place).stem
            case "mlflow":
                return self.place.partition(":/")[2]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reference:
        """What :meth:`to_json` gave.

        Raises:
            UserError: It is something else.
        """
        try:
            lists = {name: tuple(values[name]) for name in ("mean", "std")}
            return cls(**{**values, **lists, "arguments": tuple((name, v) for name, v in values["arguments"])})
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"the reference of an external model is damaged ({describe(error)})") from None


def parse(
    text: str,
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    fetched: Path | None = None,
    tracking_uri: str | None = None,
) -> Reference:
    """Read what names a model, ``FILE.py:FACTORY[?key=value&key=value]`` or another of :data:`CHOICES`.

    Values are whole numbers, numbers, ``true`` or ``false``, or else texts, and may be percent-encoded. Runs no code
    of the model's.

    Args:
        text: From the command line.
        mean: As :attr:`External.mean`.
        std: As :attr:`External.std`.
        fetched: Folder that a model of MLflow is downloaded to; None leaves it where it is.
        tracking_uri: Where it is; None: ``MLFLOW_TRACKING_URI``.

    Raises:
        UserError: No such file, no factory, arguments or an address that cannot be read; no such model in MLflow.
    """
    if text.startswith(("models:", "runs:")):
        forms = r"models:/m-[0-9a-f]+|models:/[^/@]+(/[^/]+|@[^/]+)|runs:/[^/]+/.+"
        if not re.fullmatch(forms, text):
            wanted = "models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/PATH"
            raise UserError(f"cannot read {text!r}; write {wanted}")
        reference = Reference(kind="mlflow", place=text, mean=mean, std=std)
        if fetched is None:
            return reference
        store = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not store:
            raise UserError(f"in which store is {text}? name it with --tracking-uri (MLFLOW_TRACKING_URI)")
        return dataclasses.replace(reference, folder=str(registry.fetch(text, store, fetched.resolve())))
    if found := re.fullmatch(r"(.+?\.py)(?::([^?]*))?(?:\?(.*))?", text):
        file, factory, words = _file(found[1]), found[2] or "", found[3]
        if not factory.isidentifier():
            raise UserError(f"which function of {found[1]} returns the model? write {found[1]}:FACTORY")
        arguments = _arguments(words) if words is not None else ()
        return Reference(kind="python", place=file, factory=factory, arguments=arguments, mean=mean, std=std)
    if text.endswith(".pt2"):
        return Reference(kind="export", place=_file(text), mean=mean, std=std)
    if text.lower().endswith(_PICKLES):
        raise UserError(
            f"{text} holds weights without their code, or a pickle that runs what it likes; write a function that "
            "returns the model and name it as FILE.py:FACTORY, or export the model with torch.export.save to a .pt2"
        )
    raise UserError(f"cannot read {text!r} as a model; write {CHOICES}")


def load(reference: Reference) -> nn.Module:
    """Load a model, on the CPU, in the mode it comes in. Runs its code.

    Raises:
        UserError: One line that says what is wrong, and in which file and line if it is the user's code.
    """
    match reference.kind:
        case "python":
            made = registry.from_file(Path(reference.place), reference.factory, dict(reference.arguments))
            model = registry.house(made, reference.text)
        case "export":
            model = registry.from_export(Path(reference.place))
        case "mlflow":
            if not reference.folder:
                raise UserError(f"{reference.place} was not fetched yet")
            model = registry.load_folder(Path(reference.folder), reference.place)
    if not isinstance(model, nn.Module):
        raise UserError(f"{reference.text} returned {type(model).__name__}, expected a torch.nn.Module")
    if any(torch.nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise UserError(
            f"{reference.text} has parameters without a size yet: call the model once before it is returned"
        )
    return Normalised(model, reference.mean, reference.std) if reference.mean else model


def describe_model(model: nn.Module, reference: Reference, remedy: Remedy | None = None) -> External:
    """The declaration of a model that :func:`load` returned."""
    remedy = remedy or Remedy()
    return External(
        weights=digest(bare(model)),
        program=program(reference, model, remedy),
        mean=reference.mean,
        std=reference.std,
        remedy=remedy,
        reference=reference,
    )


def words(declared: External) -> list[str]:
    """What to type for a model: its reference, and the options that say how it is to be seen."""
    assert declared.reference is not None
    found = [declared.reference.text]
    for name in ("mean", "std"):
        if values := getattr(declared, name):
            found += [f"--{name}", _listed(values)]
    remedy = declared.remedy
    for module, function in remedy.stand_ins:
        found += ["--stand-in", f"{module}={function}"]
    named = ["probabilities"] if remedy.probabilities else []
    named += [f"temperature={_listed((remedy.temperature,))}"] if remedy.temperature != 1 else []
    named += [f"draws={remedy.draws}"] if remedy.draws > 1 else []
    named += [f"votes={remedy.votes}"] if remedy.votes else []
    for text in named or ["none"]:
        found += ["--remedy", text]
    return found


def restore(reference: Reference, declared: External) -> nn.Module:
    """Load a model and make sure that it is the one that was declared.

    Raises:
        UserError: As :func:`load`; or it is another one by now.
    """
    model = load(reference)
    made = describe_model(model, reference, declared.remedy)
    if made.weights != declared.weights:
        raise UserError(
            f"{reference.text} has other weights than when the run began: they were changed, or differ at every load"
        )
    if made != declared:
        raise UserError(f"{reference.text} has other code than when the run began: start the run again")
    return model


def bare(model: nn.Module) -> nn.Module:
    """A model without what :func:`load` put around it."""
    while isinstance(model, registry.Housed):
        model = model.inner
    return model


def digest(model: nn.Module) -> str:
    """Digest of a model's parameters and buffers: 16 hexadecimal digits."""
    total = hashlib.sha256()
    state = {**dict(model.named_buffers(remove_duplicate=False)), **model.state_dict()}  # not all buffers are saved
    for name, value in sorted(state.items()):
        total.update(name.encode())
        _add(total, value)
    return total.hexdigest()[:16]


def program(reference: Reference, model: nn.Module, remedy: Remedy = _NONE) -> str:
    """Digest of a model's code: 16 hexadecimal digits.

    Of a Python file its bytes, those of the files below its folder that it imports, the factory's name and its
    arguments; of an exported program the graph with its constants; of any other model of MLflow its files, weights
    included. Programs that a Python file loads count with theirs, and so do files that hold stand-in gradients. Not
    seen: installed packages, files that hold settings. :func:`fingerprint` sees what they do.
    """
    total = hashlib.sha256()
    given = model.inner if isinstance(model, Normalised) else model
    if reference.kind == "python":
        total.update(repr(registry.sources(Path(reference.place))).encode())
        total.update(repr((reference.factory, reference.arguments)).encode())
    elif not isinstance(given, registry.Exported):
        total.update(repr(registry.contents(Path(reference.folder), "code", "data")).encode())
    for graph in registry.graphs(model):
        total.update(graph.code.encode())
        for name, value in registry.constants(graph):
            total.update(name.encode())
            _add(total, value)
    for part in model.modules():
        if isinstance(part, torch.jit.ScriptModule):
            total.update(part.save_to_buffer())
    for _, function in remedy.stand_ins:
        if (file := Path(function.rpartition(":")[0])).is_file():
            total.update(file.read_bytes())
    return total.hexdigest()[:16]


class Normalised(registry.Housed):
    """A model behind ``(x - mean) / std``.

    Args:
        inner: Takes normalised images.
        mean: One value, or one a channel.
        std: As ``mean``, positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(inner)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.training = inner.training

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


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise UserError unless both are given or neither, all are finite, and every std is positive."""
    if bool(mean) != bool(std):
        raise UserError("mean and std belong together: give both or neither (mean 0 and std 1 change nothing)")
    if not all(map(math.isfinite, (*mean, *std))):
        raise UserError(f"mean and std must be finite, got {mean} and {std}")
    if any(value <= 0 for value in std):
        raise UserError(f"std must be positive, got {_listed(std)}")


# -- looks at a loaded model ---------------------------------------------------------------------------------------

FINGERPRINT: Final = 16
"""Images behind a fingerprint."""


def fingerprint(model: nn.Module, shape: tuple[int, int, int], classes: int) -> str:
    """SHA-256 of what a model does: logits, and gradients of their sum, on fixed pseudo-random images, on the CPU.

    Computed with one thread; a model that draws, draws from a fixed seed. It tells code that weights and files do not
    show. A fact of provenance, not of identity: another machine may round differently.

    Args:
        model: Left as it is.
        shape: (C, H, W).
        classes: Expected number of logits.

    Raises:
        UserError: The model does not take such images; see :func:`inspect`.
    """
    x = torch.rand((FINGERPRINT, *shape), generator=torch.Generator().manual_seed(FINGERPRINT))
    with identity.as_a_worker(), identity.isolated(0), torch.enable_grad():
        victim = Victim(model, classes=classes)
        logits = _ask(victim, x.requires_grad_())
        try:
            grad = torch.autograd.grad(logits.sum(), x, allow_unused=True)[0]
        except RuntimeError:  # there is none
            grad = None
    total = hashlib.sha256()
    _add(total, logits.detach())
    _add(total, grad)
    return total.hexdigest()


def inspect(model: nn.Module, x: Tensor, y: Tensor, classes: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Find out whether a model can be judged, and what has to be known of it.

    Args:
        model: Left as it is.
        x: Images (N, C, H, W) in [0, 1]; a hundred will do.
        y: True labels (N,).
        classes: Classes of the data set.
        device: Where it will run.

    Returns:
        Plain values: ``outputs`` (``"logits"``, ``"probabilities"`` or ``"log-probabilities"``), ``dtype`` of weights
        and buffers, ``train_mode`` (whether it came in that mode; it is judged in eval mode), ``changed_labels`` (how
        many labels varied over three calls; 0 for a deterministic model), ``clean_accuracy``, ``notes`` (one line
        each).

    Raises:
        UserError: It cannot be judged; the line says why.
    """
    inner = bare(model)
    kinds = {value.dtype for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()}
    dtype = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "none"
    try:
        victim = Victim(model, classes=classes, device=device)
    except Exception as error:  # copying runs code of the model's own
        raise UserError(f"the model cannot be set up on {device}: {registry.said(error)}") from error
    before = digest(victim.model)
    with identity.isolated(0, device), torch.no_grad():
        calls = [_ask(victim, x, dtype) for _ in range(3)]
        alone = torch.cat([_ask(victim, one, dtype) for one in x[:8].split(1)])  # type: ignore[no-untyped-call]
    if digest(victim.model) != before:
        raise UserError("the model changes its own buffers when it is asked: batch normalisation in train mode?")
    labels = torch.stack([logits.argmax(1).cpu() for logits in calls])
    changed = int((labels != labels[0]).any(0).sum())
    scale = float(calls[0].abs().max())
    apart = ((alone - calls[0][:8]).abs().amax(1) > 0.01 * scale).sum()
    noise = float((calls[1] - calls[0]).abs().max())
    if noise <= 1e-4 * scale and 2 * int(apart) > len(alone):
        raise UserError(
            f"what the model says of an image depends on the images beside it ({int(apart)} of {len(alone)} alone "
            "differ): does it use statistics of the batch?"
        )
    accuracy = float((labels[0] == y.cpu()).double().mean())
    chance = max(1 / classes, int(y.bincount().max()) / len(y))
    notes = []
    if kinds - {torch.float32} or calls[0].dtype != torch.float32:
        returned = str(calls[0].dtype).removeprefix("torch.")
        notes.append(f"the model holds {dtype} and returns {returned}; images are float32")
    if accuracy <= chance:
        hint = "are labels and normalisation (mean, std) those of its training?"
        notes.append(f"clean accuracy is {accuracy:.1%} on {len(y)} images, no better than chance: {hint}")
    return {
        "outputs": _outputs(calls[0].double()),
        "dtype": dtype,
        "train_mode": inner.training,
        "changed_labels": changed,
        "clean_accuracy": accuracy,
        "notes": notes,
    }


def _ask(victim: Victim, x: Tensor, dtype: str = "") -> Tensor:
    """Logits, or one line that says why there are none."""
    try:
        logits: Tensor = victim(x)
    except UserError:
        raise
    except Exception as error:  # whatever the model raises
        if dtype not in ("", "float32", "none"):
            raise UserError(f"the model computes in {dtype}, images are float32: call its .float() first") from error
        what = f"{len(x)} images of shape {tuple(x.shape[1:])}"
        raise UserError(f"the model does not take {what}: {registry.said(error)}") from error
    bad = int((~torch.isfinite(logits)).any(1).sum())
    if bad:
        raise VictimError(f"the model returned NaN or infinite logits for {bad} of {len(x)} images")
    return logits


def _outputs(values: Tensor) -> str:
    """What kind of numbers a model returns, by their values; float64 (N, K)."""
    if float(values.min()) >= 0 and bool(((values.sum(1) - 1).abs() < 1e-3).all()):
        return "probabilities"
    return "log-probabilities" if bool((values.logsumexp(1).abs() < 1e-3).all()) else "logits"


# -- small things --------------------------------------------------------------------------------------------------


def _add(total: Any, value: object) -> None:
    """Let a value of a state count in a digest."""
    if not isinstance(value, Tensor):
        total.update(repr(value).encode())
        return
    total.update(str(value.dtype).encode() + str(tuple(value.shape)).encode())
    plain = value.dequantize() if value.is_quantized else value.to_dense() if value.is_sparse else value
    # as bytes: NumPy knows no bfloat16
    total.update(plain.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())


def _file(text: str) -> str:
    path = Path(text).expanduser()
    if not path.is_file():
        raise UserError(f"no file {text}")
    return str(path.resolve())


def _arguments(words: str) -> tuple[tuple[str, Argument], ...]:
    found: dict[str, Argument] = {}
    for part in words.split("&"):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise UserError(f"write arguments as ?key=value&key=value, each once; got {part!r} in {words!r}")
        found[name] = _value(unquote(value))
    return tuple(sorted(found.items()))


def _value(text: str) -> Argument:
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text


def _written(value: Argument) -> str:
    return str(value).lower() if isinstance(value, bool) else quote(str(value), safe="/:,@+~ ")


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(str(int(value) if value == int(value) else value) for value in values) or "none"
