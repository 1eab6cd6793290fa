"""Many networks of one architecture trained side by side: one pass for all of them, over stacked weights.

What a step of a small network costs on a GPU is mostly the launching of kernels: side by side there are as many for
ten networks as for one. A CPU has nothing to gain, and loses with convolutions (``benchmarks/bench_ensemble.py``).
"""

from __future__ import annotations

import copy
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.overrides import TorchFunctionMode

from .. import determinism, identity
from ..datasets.registry import Dataset
from ..errors import UserError
from ..models.registry import build_model
from ..models.stages import Stages
from .optim import set_lr
from .precision import computing
from .trainer import Diverged, Epoch, Progress, Trained, Trainer


class Beside(nn.Module):
    """The same part of E networks, with stacked weights: what the part makes of (E * N, ...), network by network.

    Args:
        members: The part in each network, alike in all but the values of weights and buffers.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(members)
        weights, buffers = stack_module_state(list(members))
        self._weight_names, self._buffer_names = tuple(weights), tuple(buffers)
        self.weights = nn.ParameterList(weights.values())
        for number, value in enumerate(buffers.values()):
            self.register_buffer(f"buffer{number}", value)
        # in a tuple, so that its weights do not count as this module's
        self._pattern = (copy.deepcopy(members[0]).to("meta"),)

    def forward(self, x: Tensor) -> Tensor:
        """What leaves the part in each network: (E * N, ...), like what enters it."""
        pattern, state = self._pattern[0], self._state()
        if not state:
            return pattern(x)  # type: ignore[no-any-return]

        def one(state: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(pattern, state, (x,))  # type: ignore[no-any-return]

        # :class:`Draws` knows whole batches alone: what is drawn in here, each network draws for itself
        with torch._C.DisableTorchFunction():
            out: Tensor = vmap(one, randomness="different")(state, apart(x, self.size))
            return out.flatten(0, 1)

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode."""
        self._pattern[0].train(mode)
        return super().train(mode)

    def restore(self, member: int, part: nn.Module) -> None:
        """Copy the weights and buffers of one network into such a part of its own."""
        part.load_state_dict({name: value[member] for name, value in self._state().items()})

    def _state(self) -> dict[str, Tensor]:
        buffers = (getattr(self, f"buffer{number}") for number in range(len(self._buffer_names)))
        return dict(zip((*self._weight_names, *self._buffer_names), (*self.weights, *buffers), strict=True))


class Ensemble(Stages):
    """E networks as one: images (E * N, C, H, W) in, logits (E * N, K) out, both network by network.

    Stages and taps see such batches, too.

    Args:
        networks: Of one architecture. They are kept, and their weights left as they are until :meth:`split`.
    """

    def __init__(self, networks: Sequence[Stages]) -> None:
        first = networks[0]
        stages = OrderedDict((name, Beside([network.stages[name] for network in networks])) for name in first.stages)
        super().__init__(OrderedDict(stages), first.hidden)
        self.members = len(networks)
        self._networks = tuple(networks)

    def split(self) -> tuple[Stages, ...]:
        """The networks, with the weights that they have now."""
        for member, network in enumerate(self._networks):
            for name, stage in self.stages.items():
                assert isinstance(stage, Beside)
                stage.restore(member, network.stages[name])
        return self._networks


class Draws(TorchFunctionMode):
    """Lets every network draw from a stream of its own what it would draw alone, in the same order.

    Knows the ways in which defenses draw for a batch: ``randn_like``, ``rand_like``, ``randn``, ``rand`` and
    ``dropout``. Anything else comes from torch's global generator.

    Args:
        streams: One a network, on the CPU.
    """

    def __init__(self, streams: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._streams = tuple(streams)
        self._ways: dict[Callable[..., Any], Callable[..., Any]] = {
            torch.randn_like: lambda like: self._fill(torch.empty_like(like), Tensor.normal_),
            torch.rand_like: lambda like: self._fill(torch.empty_like(like), Tensor.uniform_),
            torch.randn: lambda *size, **how: self._fill(torch.empty(*size, **how), Tensor.normal_),
            torch.rand: lambda *size, **how: self._fill(torch.empty(*size, **how), Tensor.uniform_),
            F.dropout: self._dropout,
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._ways.get(func, func)(*args, **(kwargs or {}))

    def _fill(self, out: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        for part, stream in zip(apart(out, len(self._streams)), self._streams, strict=True):
            draw(part, generator=stream)
        return out

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p in (0, 1):
            return F.dropout(x, p, training, inplace)
        kept = self._fill(torch.empty_like(x), lambda part, generator: part.bernoulli_(1 - p, generator=generator))
        return x * kept.div_(1 - p)


def apart(batch: Tensor, members: int) -> Tensor:
    """What belongs to each network: (E * N, ...) to (E, N, ...)."""
    return batch.reshape(members, -1, *batch.shape[1:])


def check(trainer: Trainer) -> None:
    """Raise unless networks can train side by side under a trainer.

    Raises:
        UserError: They cannot; the message says why.
    """
    if not trainer.by_batch:
        raise UserError(f"{trainer.name} cannot train side by side: its losses are no plain means over a batch")
    for field in ("patience", "refit", "max_norm", "pretraining"):
        if getattr(trainer, field) is not None:
            raise UserError(f"{trainer.name}: {field} is of one network alone; leave it out, or train no seeds beside")
    if trainer.decayed != "all":
        raise UserError(f"{trainer.name}: decayed={trainer.decayed} cannot train networks side by side")


def fit(
    trainer: Trainer,
    architecture: str,
    data: Dataset,
    seeds: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Trained]:
    """Train networks side by side; each has the initial weights and the order of images that it would have alone.

    On the CPU it also draws the same noise, unless a stage of the architecture draws by itself. All else equal, weights
    then differ from those of a network trained alone by rounding.

    Args:
        trainer: What to train with.
        architecture: Name of the architecture.
        data: The data set; its test part is not looked at.
        seeds: What each network's random numbers are seeded with.
        device: Where to train.
        progress: Called after every epoch with means over the networks.

    Returns:
        What training each alone would return. A line of history has the mean loss of all networks (an objective is
        known for a whole batch alone), the network's own accuracies, and its share of the seconds.

    Raises:
        Diverged: The loss stopped being finite, or the weights of a network give none that is.
        UserError: Trainer or architecture do not allow it; ``subset`` is more than there are.
    """
    check(trainer)
    mine = trainer.resolve(data.info)
    data = mine.part(data)
    networks, opponents, streams = [], [], []
    for seed in seeds:
        determinism.seed_everything(seed)
        networks.append(build_model(architecture, data.info.shape, len(data.info.classes)))
        opponents.append(mine.opponent(data.info))
        streams.append(torch.Generator())
        streams[-1].set_state(torch.get_rng_state())
    if networks[0].unsupervised:
        raise UserError(f"{architecture} has layers that are trained without labels: not side by side")
    determinism.seed_everything(identity.derive_seed(list(seeds)))  # what no stream is asked for
    model = Ensemble(networks).to(device)
    others = [opponent for opponent in opponents if opponent is not None]
    if others:
        mine = mine.against(Beside(others).to(device))
    with computing(mine.networks(model), mine.precision, mine.compiled):
        histories = _loop(mine, model, data, streams, device, progress)
    return [
        Trained(mine.wrap(network.to(device), None).eval(), history)
        for network, history in zip(model.split(), histories, strict=True)
    ]


def _loop(
    trainer: Trainer,
    model: Ensemble,
    data: Dataset,
    streams: Sequence[torch.Generator],
    device: torch.device | str,
    progress: Progress | None,
) -> list[list[Epoch]]:
    """:meth:`Trainer._loop` for an ensemble; a history for each network."""
    assert trainer.epochs is not None
    images, labels = data.x_train.to(device), data.y_train.to(device)
    orders = torch.stack([torch.randperm(len(images), generator=stream) for stream in streams])
    held = trainer.held(len(images))
    held_out, kept = orders[:, :held].to(device), orders[:, held:]
    steps = trainer.epochs * math.ceil(kept.shape[1] / trainer.batch_size)
    optimizer = trainer._optimizer(model, trainer.weight_decay)
    rates = trainer.rates(steps)
    lines: list[list[Epoch]] = []
    for epoch in range(1, trainer.epochs + 1):
        start = time.perf_counter()
        model.train()
        total = torch.zeros((), device=device)
        correct = torch.zeros(model.members, device=device, dtype=torch.int64)
        turns = [torch.randperm(kept.shape[1], generator=stream) for stream in streams]
        rows = torch.stack([mine[turn] for mine, turn in zip(kept, turns, strict=True)]).to(device)
        for part in rows.split(trainer.batch_size, 1):  # type: ignore[no-untyped-call]
            batch = part.flatten()
            x, y = data.to_float(images[batch]), labels[batch]
            if rates is not None:
                set_lr(optimizer, next(rates))
            with Draws(streams) if x.device.type == "cpu" else nullcontext():
                loss = trainer.step(model, optimizer, x, y)
            total += loss.value * part.shape[1]
            correct += apart(loss.logits.argmax(1) == y, model.members).sum(1)
        mean = float(total) / kept.shape[1]
        if not math.isfinite(mean):
            raise Diverged(f"{trainer.name}: the mean training loss became {mean} in epoch {epoch}; try a lower lr")
        accuracies = (correct / kept.shape[1]).tolist()
        checked = scores(model, data, images, labels, held_out)
        seconds = (time.perf_counter() - start) / model.members
        lines.append(
            [Epoch(epoch, mean, accuracy, *valid, seconds) for accuracy, valid in zip(accuracies, checked, strict=True)]
        )
        if progress is not None:
            progress(epoch, trainer.epochs, {"loss": mean, "accuracy": sum(accuracies) / model.members})
    for number, (last, _) in enumerate(scores(model, data, images, labels, kept[:, :1000].to(device)), start=1):
        if not math.isfinite(last):
            raise Diverged(f"{trainer.name}: the loss of network {number} of {model.members} is {last}; try a lower lr")
    return [list(history) for history in zip(*lines, strict=True)] if lines else [[] for _ in streams]


@torch.no_grad()
def scores(
    model: Ensemble, data: Dataset, images: Tensor, labels: Tensor, index: Tensor, batch: int = 1000
) -> list[tuple[float, float]]:
    """:func:`harness.training.trainer.score` of each network on images of its own.

    Args:
        model: The ensemble; left in eval mode.
        data: Says how images become floats.
        images: uint8 (M, C, H, W), on the model's device.
        labels: int64 (M,).
        index: Which of them each network is asked about, (E, n).
        batch: Images a forward pass, of all networks together.
    """
    if not index.shape[1]:
        return [(math.nan, math.nan)] * model.members
    model.eval()
    loss = torch.zeros(model.members, dtype=torch.float64, device=images.device)
    correct = torch.zeros_like(loss)
    for part in index.split(max(1, batch // model.members), 1):  # type: ignore[no-untyped-call]
        chosen = part.flatten()
        logits, y = model(data.to_float(images[chosen])), labels[chosen]
        loss += apart(F.cross_entropy(logits, y, reduction="none"), model.members).sum(1)
        correct += apart(logits.argmax(1) == y, model.members).sum(1)
    share = index.shape[1]
    return [(one / share, right / share) for one, right in zip(loss.tolist(), correct.tolist(), strict=True)]
