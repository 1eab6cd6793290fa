"""Models by name: timm, Hugging Face, torchvision, RobustBench, and ONNX files.

Each library is imported when a model of it is loaded, and is an optional extra. What a model's own configuration says
of its input, a mean and a standard deviation, is put in front of it. No code comes from a hub: configurations are
JSON, weights are read as tensors alone, and a repository's own Python is not run.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from .. import determinism
from ..errors import UserError, said, unknown
from ..user_code import process_state
from .archive import tensors_only

Arguments = Mapping[str, Any]


class Named(NamedTuple):
    """A model as its library gives it.

    Attributes:
        mean: That its configuration says to subtract, of images in [0, 1]; ``()`` where it normalises inside or not.
        size: Side of the images that it was made for, 0 where nothing says.
    """

    model: nn.Module
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int = 0


def load(place: str, arguments: Arguments) -> Named:
    """Build ``HUB:NAME`` with its weights, fetched if they are not there, on the CPU in eval mode.

    Arguments are handed to the library; with ``state_dict`` among them the weights of that file take the place of
    the hub's, with ``pretrained=false`` the initial ones.

    Raises:
        UserError: The library is not installed, there is no such model, or its weights cannot be had.
    """
    hub, _, name = place.partition(":")
    given = {key: value for key, value in arguments.items() if key not in ("state_dict", "pretrained")}
    file = arguments.get("state_dict")
    pretrained = file is None and bool(arguments.get("pretrained", True))
    try:
        # what the library draws for a net without weights is the same in every process
        with process_state.kept(), tensors_only(), determinism.isolated(0):
            found = HUBS[hub](name, given, pretrained)
    except UserError:
        raise
    except Exception as error:  # each library, HTTP and the file system have exceptions of their own
        way = f"; with weights of a file: {place}?state_dict=FILE, with none: {place}?pretrained=false"
        how = way if pretrained and hub in ("timm", "hf", "torchvision") else ""
        raise UserError(f"{place} cannot be loaded ({said(error)}){how}") from error
    if file is not None:
        load_state(found.model, Path(str(file)))
    return found._replace(model=found.model.eval())


def load_state(model: nn.Module, file: Path) -> None:
    """Load weights from a ``.safetensors`` file, or one that ``torch.save`` wrote, of which tensors alone are read.

    A state dict within a checkpoint, and one of a model that was wrapped for several devices, is found.

    Raises:
        UserError: It cannot be read so, or is of another model.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{file} holds no tensors that can be read without running code ({said(error)})") from error
    for name in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} holds no state dict, a mapping of names to tensors")
    own, plain = model.state_dict(), dict(state)
    if not own.keys() & plain.keys():
        plain = {name.removeprefix("module."): value for name, value in plain.items()}
    missing, more = sorted(own.keys() - plain.keys()), sorted(plain.keys() - own.keys())
    shapes = [name for name in own.keys() & plain.keys() if own[name].shape != plain[name].shape]
    for what, names in (("lacks", missing), ("has besides", more), ("has in another shape", sorted(shapes))):
        if names:
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(f"{file} holds weights of another model: it {what} {listed}")
    model.load_state_dict(plain)


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        raise UserError(
            f"{top} is not installed ({error}): pip install 'gauntlet-bench[{extra}]', or {top} by itself"
        ) from error


def _timm(name: str, given: Arguments, pretrained: bool) -> Named:
    timm, data = _library("timm", "timm"), _library("timm.data", "timm")
    if name not in timm.list_models() and name not in timm.list_pretrained() and not name.startswith("hf-hub:"):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5, cutoff=0.5)
        raise unknown("timm model", name, [*near, "what timm.list_models() gives"])
    model = timm.create_model(name, pretrained=pretrained, **given)
    config = data.resolve_model_data_config(model)
    return Named(model, tuple(config["mean"]), tuple(config["std"]), int(config["input_size"][-1]))


def _hugging_face(name: str, given: Arguments, pretrained: bool) -> Named:
    transformers = _library("transformers", "hf")
    kind = transformers.AutoModelForImageClassification
    if pretrained:
        model = kind.from_pretrained(name, trust_remote_code=False, **given)
    else:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **given)
        model = kind.from_config(config, trust_remote_code=False)
    processor, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    size = processor.get("crop_size") or processor.get("size") or 0
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge") or 0
    if not processor.get("do_normalize", True):
        return Named(model, size=int(size))
    half = (0.5, 0.5, 0.5)
    return Named(model, tuple(processor.get("image_mean", half)), tuple(processor.get("image_std", half)), int(size))


def _torchvision(name: str, given: Arguments, pretrained: bool) -> Named:
    models = _library("torchvision.models", "torchvision")
    network, _, wanted = name.partition(":")
    known = models.list_models(module=models)
    if network not in known:
        raise unknown("torchvision model", network, known)
    offered = models.get_model_weights(network)
    names = [weights.name for weights in offered]
    if wanted and wanted not in names:
        raise unknown(f"weights of {network}", wanted, names)
    weights = offered[wanted] if wanted else offered.DEFAULT
    model = models.get_model(network, weights=weights if pretrained else None, **given)
    preset = weights.transforms()
    return Named(model, tuple(preset.mean), tuple(preset.std), int(preset.crop_size[0]))


def _robustbench(name: str, given: Arguments, pretrained: bool) -> Named:
    utils = _library("robustbench.utils", "robustbench")
    if not pretrained:
        raise UserError(f"robustbench:{name} comes with its weights: leave out state_dict and pretrained")
    return Named(utils.load_model(model_name=name, **given))  # they normalise inside


def _onnx(name: str, given: Arguments, pretrained: bool) -> Named:
    library = _library("onnx2torch", "onnx")
    if given or not pretrained:
        raise UserError(f"onnx:{name} takes no arguments: its file holds all of it")
    return Named(library.convert(name))


HUBS: Final[dict[str, Callable[[str, Arguments, bool], Named]]] = {
    "timm": _timm,
    "hf": _hugging_face,
    "torchvision": _torchvision,
    "robustbench": _robustbench,
    "onnx": _onnx,
}
"""How models are loaded, by what stands before the colon."""
