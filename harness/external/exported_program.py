"""Load a user's model from a torch.export program; wrap compiled models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, said
from ..user_code import process_state
from . import archive


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
    """Load a program that ``torch.export.save`` wrote. Runs no code of the file's (:mod:`harness.external.archive`).

    Raises:
        UserError: It is none, holds what would run code, or cannot be used; see :class:`Exported`.
    """
    # torch's tracer comes with it, which takes a process as long to import as torch does
    from torch.export.pt2_archive._package import load_pt2

    try:
        archive.refuse_code(path)
        with process_state.kept(), archive.tensors_only():
            # not torch.export.load: where this fails, it tries a form of the file that is a pickle
            program = load_pt2(path).exported_programs["model"]
    except UserError:
        raise
    except Exception as error:  # zip, pickle, JSON and the file system each have exceptions of their own
        raise UserError(f"{path} is no program that torch.export.save wrote ({said(error)})") from error
    exported: nn.Module = house(program.module(), str(path))
    return exported


def house(model: Any, name: str) -> Any:
    """Put a model that is a compiled program into a house; give back any other as it is.

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
