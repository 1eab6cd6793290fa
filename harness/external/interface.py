"""How to call a user's model and read its output where it does not take any batch and return bare logits."""

from __future__ import annotations

import dataclasses
from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import exported_program

TRIED: Final = 16
"""Images that a model is first called with."""

_SIZES: Final = (*range(2, 33), 64, 100, 128, 200, 250, 256)
"""Fixed batch sizes that are looked for."""

_BELOW: Final = 100.0
"""A class masked with minus infinity is given a logit so far below the lowest other one: e^-100 of its probability."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """How to call a model and where its logits are.

    Attributes:
        logits: Name, key or position of the logits in what the model returns; "" if it returns them bare.
        maps: They come as (N, K, 1, 1).
        masked: Some are minus infinity, for classes that it never predicts.
        batch: Images that it takes at once; 0 for any number.
        fixed: It takes no fewer either: a smaller batch is filled up.

    Raises:
        UserError: A negative batch.
    """

    name: ClassVar[str] = "interface"

    logits: str = ""
    maps: bool = False
    masked: bool = False
    batch: int = 0
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise UserError(f"batch must be at least 1, got {self.batch}")

    def __bool__(self) -> bool:
        return self != Interface()

    def __str__(self) -> str:
        parts = [f"its logits are {self.logits} of what it returns"] if self.logits else []
        parts += ["logits of shape (N, K, 1, 1)"] if self.maps else []
        parts += ["logits of minus infinity, as of classes that never win"] if self.masked else []
        how = "exactly" if self.fixed else "at most"
        parts += [f"{how} {self.batch} {'image' if self.batch == 1 else 'images'} at once"] if self.batch else []
        return ", ".join(parts)

    def around(self, model: nn.Module) -> nn.Module:
        """The model as one that takes any number of images and returns (N, K) finite logits; itself if it does."""
        return Interfaced(model, self) if self else model


class Interfaced(exported_program.Housed):
    """A model behind its :class:`Interface`."""

    def __init__(self, inner: nn.Module, interface: Interface) -> None:
        super().__init__(inner)
        self.interface = interface
        self.training = inner.training

    def forward(self, x: Tensor) -> Any:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        size = self.interface.batch or max(len(x), 1)
        parts = [self._ask(part, size) for part in x.split(size)]  # type: ignore[no-untyped-call]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _ask(self, x: Tensor, size: int) -> Any:
        missing = size - len(x) if self.interface.fixed else 0
        answer = self.inner(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x)
        found = dict(items(answer)).get(self.interface.logits)
        if not isinstance(found, Tensor):
            return answer  # whoever expects logits says what is wrong
        logits = found[: len(x)]
        if self.interface.maps:
            logits = logits.flatten(1)
        if self.interface.masked:
            masked = logits == -torch.inf
            lowest = logits.detach().masked_fill(masked, torch.inf).amin(1, keepdim=True)
            logits = torch.where(masked, lowest - _BELOW, logits)
        return logits


def items(answer: object) -> Iterator[tuple[str, object]]:
    """What a model returned, by name: "" for a tensor, else ``.name``, ``["key"]`` or ``[0]`` for each part."""
    if isinstance(answer, Tensor):
        yield "", answer
    elif isinstance(answer, abc.Mapping):
        yield from ((f'["{key}"]', value) for key, value in answer.items())
    elif isinstance(answer, tuple) and hasattr(answer, "_fields"):
        yield from ((f".{name}", value) for name, value in zip(answer._fields, answer, strict=True))
    elif isinstance(answer, abc.Sequence) and not isinstance(answer, str):
        yield from ((f"[{place}]", value) for place, value in enumerate(answer))
    elif hasattr(answer, "__dict__") or dataclasses.is_dataclass(answer):
        names = (
            [field.name for field in dataclasses.fields(answer)] if dataclasses.is_dataclass(answer) else vars(answer)
        )
        yield from ((f".{name}", getattr(answer, name)) for name in names)


@torch.no_grad()
def find(model: nn.Module, x: Tensor, classes: int | None = None, batch: int | None = None) -> Interface:
    """Find out how a model is called and where its logits are: ``classes``, or any number from two.

    The model is in eval mode, on the images' device, and is called. At most :data:`TRIED` images are used, repeated
    where a size asks for more; ``batch`` says how many it takes at once, if the user does.

    Raises:
        UserError: Nothing in its answer can be taken for logits without doubt; the line says what to return instead.
            Whatever else the model raises comes through.
    """
    x = x[:TRIED]
    answer, size, fixed = _call(model, x, batch)
    named = dict(items(answer))
    n = next((len(value) for value in named.values() if isinstance(value, Tensor) and value.dim()), 0)
    chosen = [name for name in ('["logits"]', ".logits") if isinstance(named.get(name), Tensor)]
    chosen = chosen or [name for name, value in named.items() if _fits(value, n, classes)]
    if "" in named:
        chosen = [""]
    if len(chosen) != 1:
        raise UserError(_complaint(answer, named, chosen, classes))
    logits = named[chosen[0]]
    assert isinstance(logits, Tensor)
    if logits.is_floating_point() and logits.shape in ((n,), (n, 1)) and n <= max(len(x), size or 0):
        raise UserError(
            f"the model returned one score an image, shape {tuple(logits.shape)}; return logits (N, 2) of two classes: "
            "torch.cat([-z, z], 1) of its logit z (N, 1), which is torch.logit(p) for a probability p"
        )
    maps = logits.dim() > 2 and logits.shape[2:].numel() == 1
    flat = logits.flatten(1) if maps else logits
    masked = flat.dim() == 2 and flat.is_floating_point() and _is_masked(flat)
    return Interface(logits=chosen[0], maps=maps, masked=masked, batch=size, fixed=fixed)


def _call(model: nn.Module, x: Tensor, batch: int | None) -> tuple[object, int, bool]:
    """An answer, the batch size that the model asks for (0: any), and whether it takes no smaller one."""
    if batch is None:
        try:
            return model(x.clone()), 0, False  # it may write into them
        except torch.OutOfMemoryError:
            if len(x) == 1:
                raise
            return _call(model, x[: (len(x) + 1) // 2], None)
        except UserError:
            raise
        except Exception as error:
            first = error
    for size in (1, *_SIZES) if batch is None else (batch,):
        try:
            answer = model(_repeated(x, size))
        except torch.OutOfMemoryError:
            raise
        except Exception:
            if batch is not None:
                raise
            continue
        if batch is not None and batch > 1:
            return answer, batch, not _works(model, x[:1])
        if size > 1:
            return answer, size, True
        if batch is None:
            while size < len(x) and _works(model, _repeated(x, 2 * size)):
                size *= 2
        return (answer if size == 1 else model(x[:size])), size, False
    raise first


def _works(model: nn.Module, x: Tensor) -> bool:
    try:
        model(x)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
    return True


def _repeated(x: Tensor, size: int) -> Tensor:
    return x[torch.arange(size, device=x.device) % len(x)]


def _fits(value: object, n: int, classes: int | None) -> bool:
    """Whether it looks like the logits of n images."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2 or len(value) != n:
        return False
    return value.shape[2:].numel() == 1 and (value.shape[1] == classes if classes is not None else value.shape[1] > 1)


def _is_masked(logits: Tensor) -> bool:
    """Whether every image has finite logits, two at least, and the others are minus infinity."""
    finite = logits.isfinite()
    return bool((finite | (logits == -torch.inf)).all() and (finite.sum(1) >= 2).all() and not finite.all())


def _complaint(answer: object, named: dict[str, object], chosen: list[str], classes: int | None) -> str:
    k = classes if classes is not None else "K"
    what = f"the model returned {type(answer).__name__}, expected a tensor of logits (N, {k})"
    if chosen:
        return f"{what}: which of {', '.join(chosen)} are they? return that alone"
    shapes = [f"{name} {tuple(v.shape)}" for name, v in named.items() if isinstance(v, Tensor)]
    return f"{what}; none is among {', '.join(shapes)}" if shapes else what
