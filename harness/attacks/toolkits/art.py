"""Adapter for attacks of the Adversarial Robustness Toolbox (ART 1.20), imported only when one runs.

>>> Art("AutoProjectedGradientDescent", loss_type="difference_logits_ratio", max_iter=50)  # doctest: +SKIP

The threat gives norm and eps; the door sets the batch size, silence, clip values and the estimator. Steps are
fractions of eps (``step_ratio``; where it is None, 2.5 / max_iter).
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...threat import EXPONENT, Threat
from ...victims.victim import Victim
from .art_catalogue import ART_TABLE
from .base import Foreign, load, numpy_mat, rivals, scratch_directory, seeded_numpy
from .capability import ArtCapability, Capability

Array = npt.NDArray[np.float32]

PACKAGE = "adversarial-robustness-toolbox"


def load_art() -> None:
    """Import ART, which takes seconds."""
    load("art.attacks.evasion", PACKAGE)
    load("art.estimators.classification", PACKAGE)
    # the lock of progress bars that nobody sees would be one of the machine, left behind by a killed process
    load("tqdm", PACKAGE).tqdm.set_lock(threading.RLock())


@dataclass(frozen=True, kw_only=True, init=False)
class Art(Foreign):
    """An attack of ART by class name and keyword arguments; see :class:`~.base.Foreign`."""

    name: ClassVar[str] = "art"
    toolkit: ClassVar[str] = "art"
    table: ClassVar[Mapping[str, Capability]] = ART_TABLE

    @property
    def loads(self) -> tuple[Callable[[], None], ...]:
        """ART, which takes seconds."""
        return (load_art,)

    def _attack(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        entry = cast(ArtCapability, self.capability)
        evasion = load("art.attacks.evasion", PACKAGE)
        with contextlib.ExitStack() as border:
            if victim.device.type == "cuda":
                border.enter_context(torch.cuda.device(victim.device))  # ART knows "the" GPU only
            if entry.draws:
                border.enter_context(seeded_numpy())
            if entry.litters:
                border.enter_context(scratch_directory())
                border.enter_context(numpy_mat())
            classes = victim.classes or _count(victim, x)
            estimator = _estimator(victim, x, classes, probabilities=entry.outputs == "probabilities")
            labels = _labels(entry, victim, x, y, classes)
            images = np.ascontiguousarray(x.cpu().numpy())
            arguments = self._arguments(entry, x, threat, targeted=victim.target is not None)
            x_adv = _RECIPES[entry.recipe](getattr(evasion, self.attack), estimator, arguments, images, labels)
        return torch.from_numpy(np.ascontiguousarray(x_adv, np.float32))

    def _arguments(self, entry: ArtCapability, x: Tensor, threat: Threat, *, targeted: bool) -> dict[str, Any]:
        options: dict[str, Any] = dict(self.options)
        ratio = options.pop("step_ratio", None)
        if ratio is None:
            ratio = 2.5 / options.get("max_iter", 1)
        # a minimal attack has no eps: it may cross the box
        diameter = 1.0 if threat.norm == "linf" else math.sqrt(x[0].numel())
        eps = diameter if entry.kind == "minimal" or threat.eps is None else threat.eps
        if options.get("freq_dim", 0) is None:
            options["freq_dim"] = min(x.shape[-2:])
        if "p_init" in options:
            options["p_init"] = _first_square(options["p_init"], x.shape[-2], x.shape[-1], odd=threat.norm == "l2")
        filled = {
            "batch_size": 1 if entry.one_by_one else len(x),
            "verbose": False,
            "targeted": targeted,
            "norm": EXPONENT[threat.norm] if threat.norm == "linf" else int(EXPONENT[threat.norm]),
            "eps": float(eps),
            "eps_step": float(eps * ratio),
        }
        if entry.recipe == "frames":
            options["eps"] = float(eps)
        return options | {name: filled[name] for name in entry.fills}


def _first_square(share: float, height: int, width: int, *, odd: bool) -> float:
    """The share of the pixels that Square begins with: less where ART's square would be as long as a side, and raise.

    So it is on most images that are not square themselves, and on some in L2, where lengths are rounded up to odd ones.
    """
    side = min(height, width)
    length = round(math.sqrt(share * height * width)) | odd
    return share if length < side else (side - 2) ** 2 / (height * width)


class _Border(nn.Module):
    """The victim as ART sees it: nothing to move, no mode to switch, no layers to walk through."""

    def __init__(self, victim: Victim, probabilities: bool) -> None:
        super().__init__()
        self._call = (victim,)  # in a tuple, so that it does not become a submodule
        # some attacks ask the first parameter for the device
        self._where = nn.Parameter(torch.zeros((), device=victim.device), requires_grad=False)
        self._probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        """Logits or probabilities, (N, K), where ``x`` lives."""
        logits: Tensor = self._call[0](x)
        return (logits.softmax(1) if self._probabilities else logits).to(x.device)


def _estimator(victim: Victim, x: Tensor, classes: int, *, probabilities: bool) -> Any:
    classification = load("art.estimators.classification", PACKAGE)
    return classification.PyTorchClassifier(
        model=_Border(victim, probabilities),
        # summed: the gradient of a mean shrinks with the batch, down to ART's guards against zero
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=tuple(x.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        preprocessing=None,
        device_type="gpu" if victim.device.type == "cuda" else "cpu",
    )


@torch.no_grad()
def _count(victim: Victim, x: Tensor) -> int:
    return int(victim(x[:1]).shape[1])


def _labels(entry: ArtCapability, victim: Victim, x: Tensor, y: Tensor, classes: int) -> Array:
    """One-hot labels (N, K): the truth, or the target of an attack that has one."""
    if entry.targeted == "only" or victim.target is not None:
        y = rivals(victim, x, y)
        if entry.target == "common":
            y = y.mode().values.expand_as(y)
    one_hot: Array = np.eye(classes, dtype=np.float32)[y.cpu().numpy()]
    return one_hot


def _plain(kind: Any, estimator: Any, arguments: dict[str, Any], x: Array, y: Array) -> Array:
    return cast(Array, kind(estimator, **arguments).generate(x=x, y=y))


def _battery(kind: Any, estimator: Any, arguments: dict[str, Any], x: Array, y: Array) -> Array:
    attack = kind(estimator, **arguments)
    if estimator.nb_classes < 3:
        parts = [part for part in attack.attacks if getattr(part, "loss_type", "") != "difference_logits_ratio"]
        attack.set_params(attacks=parts)
    for part in attack.attacks:
        part.set_params(verbose=False, batch_size=len(x))
    return cast(Array, attack.generate(x=x, y=y))


def _bytes(kind: Any, estimator: Any, arguments: dict[str, Any], x: Array, y: Array) -> Array:
    """Undo the rounding of a journey to [0, 255] and back, which would count as a changed pixel."""
    x_adv = _plain(kind, estimator, arguments, x, y)
    return cast(Array, np.where(np.abs(x_adv - x) < 1e-6, x, x_adv))


def _frames(kind: Any, estimator: Any, arguments: dict[str, Any], x: Array, y: Array) -> Array:
    eps = arguments.pop("eps")
    evasion = load("art.attacks.evasion", PACKAGE)
    step = evasion.FastGradientMethod(estimator, norm=math.inf, eps=eps, eps_step=eps, batch_size=len(x))
    return _plain(kind, estimator, {"attacker": step, **arguments}, x, y)


def _universal(kind: Any, estimator: Any, arguments: dict[str, Any], x: Array, y: Array) -> Array:
    eps, norm = arguments["eps"], arguments["norm"]
    inner: dict[str, dict[str, Any]] = {
        "deepfool": {"max_iter": 50, "epsilon": 0.02, "verbose": False},
        "fgsm": {"eps": eps, "eps_step": eps, "norm": norm},
        "pgd": {"eps": eps, "eps_step": eps / 4, "norm": norm, "max_iter": 10, "verbose": False},
    }
    parameters = inner[arguments["attacker"]]
    if kind.__name__.startswith("Targeted"):
        parameters["targeted"] = True
    return _plain(kind, estimator, arguments | {"attacker_params": parameters}, x, y)


def _patch(kind: Any, estimator: Any, arguments: dict[str, Any], x: Array, y: Array) -> Array:
    scale = arguments.pop("scale")
    attack = kind(estimator, patch_shape=x.shape[1:], **arguments)
    attack.generate(x=x, y=y)
    return cast(Array, attack.apply_patch(x, scale=scale))


def _starts(kind: Any, estimator: Any, arguments: dict[str, Any], x: Array, y: Array) -> Array:
    """Give starting points, for the attack gives up on the whole batch when one image has none."""
    truth = y.argmax(1)
    x_adv = x.copy()
    start = x.copy()
    open_ = estimator.predict(x, batch_size=len(x)).argmax(1) == truth
    found = np.zeros(len(x), dtype=bool)
    for _ in range(100):
        if (found == open_).all():
            break
        draw = np.random.uniform(size=x.shape).astype(np.float32)
        new = open_ & ~found & (estimator.predict(draw, batch_size=len(x)).argmax(1) != truth)
        start[new] = draw[new]
        found |= new
    if found.any():
        arguments["batch_size"] = int(found.sum())
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be switched off
            x_adv[found] = kind(estimator, **arguments).generate(x=x[found], y=y[found], starting_points=start[found])
    return x_adv


_RECIPES: dict[str, Callable[[Any, Any, dict[str, Any], Array, Array], Array]] = {
    recipe.__name__[1:]: recipe for recipe in (_plain, _battery, _bytes, _frames, _universal, _patch, _starts)
}


def capabilities() -> tuple[Capability, ...]:
    """Every attack of ART that the door knows, the refused ones included; imports nothing."""
    return tuple(ART_TABLE.values())
