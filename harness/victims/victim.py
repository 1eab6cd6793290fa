"""The model as attacks see it: frozen, in eval mode, float32, passes counted, images copied."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import determinism
from ..errors import UserError, said
from ..models.ensemble import Ensemble
from .adaptation import Remedy
from .agreement import agreement
from .bpda import give_gradients
from .duplicates import duplicate
from .harvest import Harvest

T = TypeVar("T")


class VictimError(UserError):
    """The model cannot be judged: wrong output shape, NaN logits. The message says which."""


class OtherClasses(VictimError):
    """The model has another number of outputs than the data set has classes."""


_VOTE_SEED: Final = 0x5EED
"""No attack is seeded with it: seeds of shards are derived from declarations."""


SURE: Final = 64
"""Images that a model must take at once, or say how many it takes; one that fails on more is called on so many."""


RELAID: Final = 1e-4
"""Relative change of a logit that another memory layout may cause: a tenth of what other batches may."""


class ModelChangedError(RuntimeError):
    """An attack changed the weights of the model it was given."""


@dataclass
class PassCount:
    """Samples sent through a victim: one image forward (or backward) once counts one."""

    forwards: int = 0
    backwards: int = 0


@dataclass
class _Shared:
    """What all views of a victim share: how its model is called.

    Attributes:
        images: Most images at once.
        model: The whole model, of which a view may hold a member.
        layout: How its convolutions keep images: ``"asked"`` until it was tried whether channels last will do.
        last: Images of the last batch, which an attack may have made larger than what it was given.
    """

    images: int | None
    model: nn.Module
    layout: Literal["its own", "asked", "channels last"]
    last: int = 0


class Victim(nn.Module):
    """A model under attack: frozen, locked in eval mode, float32, with its passes counted.

    Images are float32 (N, C, H, W) in [0, 1], the output is logits (N, K). Parameters have no gradient, so a
    toolkit that calls ``backward()`` on the whole graph pays for input gradients only. Not an
    ``nn.Sequential``: toolkits that walk the children of one would bypass the counters.

    The model is given a copy of the images at every call, and what it returns is copied: it may normalise in place,
    keep its input or answer out of a buffer without changing the images of an attack, of the referee or of the caller,
    or logits that it gave before; and it sees one memory layout whatever an attack does. The copies cost 0.05 % of a
    LeNet's forward pass and 0.8 % of a gradient on a dense network of two layers of 200: less than finding out
    reliably that they are not needed.

    Args:
        model: The model; normalisation belongs inside it.
        classes: Expected number of logits K; ``None`` accepts what the first call returns.
        device: Where it runs.
        own: ``False`` (the default) works on a deep copy and leaves ``model`` as it is; ``True`` takes it over.
        remedy: How the model is to be seen; only an attack's copy has one. A forward with a remedy of several draws
            counts as many passes.
        votes: Calls behind each label of :meth:`predict`, under a fixed seed; ``None`` for a deterministic model.
        fast: Whether convolutions may keep images with their channels last, if the model works so with the same
            logits: forward passes on a CPU take about half the time, gradients two thirds. Sums are made in another
            order, so that logits differ in their last digits: for an attack's copy, never for the referee's.

    Raises:
        UserError: The remedy names a submodule that the model does not have.

    Attributes:
        cost: Running :class:`PassCount`; see :meth:`counted` for the cost of a block of code.
        harvest: What is met in forward passes, while an attack runs whose finds are kept; see :meth:`harvesting`.
        rows: Images of it that the batches of this view belong to, int64 (M,); None: all of them. See :meth:`of`.
        target: Classes that images are to be taken for, int64 (M,), one () for all, or None. See :meth:`towards`.
        aimed: Whether it answers target or not; if not, a view with a target answers as the model does.
        examples: Images of the classes aimed at, (M, C, H, W), that an attack may begin from; None: it has none.
        grid: Steps of [0, 1] that images are rounded to; the remedy's, but in :meth:`as_floats`.
        chunk: Most images that the model is called with at once, ``None`` for any number; see :meth:`narrow`.
        nets: Networks that one pass goes through: the members of an ensemble, else 1.
        precision: What images are handed to the model as: float32, but for a copy in float64 that gradients are held
            against (:mod:`harness.trust.slopes`).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: int | None = None,
        device: torch.device | str = "cpu",
        own: bool = False,
        remedy: Remedy | None = None,
        votes: int | None = None,
        fast: bool = False,
    ) -> None:
        super().__init__()
        self.remedy = remedy or Remedy()
        self.votes = votes
        model = model if own else duplicate(model)
        self.model = give_gradients(model, self.remedy.stand_ins).to(device).eval().requires_grad_(False)
        self.nets = len(self.model.members) if isinstance(self.model, Ensemble) else 1
        self.classes = self._outputs = classes
        self.device = torch.device(device)
        self.cost = PassCount()
        self.harvest: Harvest | None = None
        self.rows: Tensor | None = None
        self.target: Tensor | None = None
        self.aimed = False
        self.examples: Tensor | None = None
        self.grid = self.remedy.grid
        self._fast = fast
        relayable = fast and self.device.type == "cpu" and _in_one_layout(self.model)
        self._shared = _Shared(None, self.model, "asked" if relayable else "its own")
        self.precision = torch.float32
        super().train(False)

    @property
    def chunk(self) -> int | None:
        """Shared by all views."""
        return self._shared.images

    @chunk.setter
    def chunk(self, images: int | None) -> None:
        self._shared.images = images

    def train(self, mode: bool = True) -> Victim:
        """Stay in eval mode: a toolkit may not switch dropout on."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch, shape (N, K).

        Raises:
            VictimError: The model does not return (N, K) logits.
        """
        x = x.to(self.device, self.precision)  # numpy 2 promotion hands float64 to some toolkits
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)
            x.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        if self.grid:
            x = rounded(x.detach(), self.grid) + (x - x.detach())  # the value of the first, exactly
        logits = self._once(x)
        for _ in range(self.remedy.draws - 1):  # call by call: a model may draw once for a whole batch
            logits = logits + self._once(x)
        scale = self.remedy.draws * self.remedy.temperature
        logits = logits / scale if scale != 1 else logits
        if self.harvest is not None:
            self.harvest.note(x.detach(), logits.detach(), self.rows)
        return _target_or_not(logits, self.target) if self.aimed and self.target is not None else logits

    @contextmanager
    def as_floats(self) -> Iterator[None]:
        """Let the model see images as they are in a block, also where the remedy rounds them."""
        self.grid = None
        try:
            yield
        finally:
            self.grid = self.remedy.grid

    @contextmanager
    def harvesting(self, harvest: Harvest | None) -> Iterator[None]:
        """Show what forward passes meet in a block to a harvest of the images that are attacked in it, if any."""
        self.harvest = harvest
        try:
            yield
        finally:
            self.harvest = None

    def of(self, rows: Tensor | slice) -> Victim:
        """This victim for batches that belong to some of the images under attack, in that order.

        An attack says so wherever it asks about others than all it was given: ``victim.of(left)(x_adv[left])``. Views
        of views belong to images of the view. Model, passes, hooks and all else are shared.

        Args:
            rows: Positions (M,) of images, a mask (N,), or a slice.
        """
        if self.harvest is None and self.target is None:
            return self
        changed: dict[str, Tensor] = {}
        if self.harvest is not None:
            changed["rows"] = (self.harvest.everyone if self.rows is None else self.rows)[rows]
        if self.target is not None and self.target.dim():
            changed["target"] = self.target[rows]
        return self._view(**changed)

    def towards(self, target: Tensor, *, aimed: bool) -> Victim:
        """This victim for an attack with targets, int64 (M,) for the images of this view, or () for any batch.

        With ``aimed`` it answers two logits, of anything else and of the target: the largest of the others' and the
        target's. Whoever attacks label 0 of it, without a word of targets, attacks towards them: its decision is
        whether the model says the target, its margin that of Carlini & Wagner (2017, section IV.A, f_6). Batches must
        belong to images, see :meth:`of`. Otherwise it answers as ever, for an attack that looks at :attr:`target`.
        """
        return self._view(target=target, aimed=aimed, classes=2 if aimed else self.classes)

    def knowing(self, examples: Tensor) -> Victim:
        """This victim for an attack with targets that begins from images of these classes; see :attr:`examples`."""
        return self._view(examples=examples)

    def insatiable(self) -> Victim:
        """This victim for an attack that is to lead as far as it can, and not to end at the first success.

        It passes for one that draws, whose successes may be luck.
        """
        return self if self.remedy.stochastic else self._view(remedy=replace(self.remedy, votes=1))

    @property
    def members(self) -> tuple[Victim, ...]:
        """Views of the members of an ensemble whose losses are to be averaged; none of any other model."""
        if not (isinstance(self.model, Ensemble) and self.model.average == "loss"):
            return ()
        return tuple(self._view(model=member, nets=1) for member in self.model.members)

    def _view(self, **changed: Any) -> Victim:
        """The same with something else in place; model, passes, hooks and all else are shared."""
        view = object.__new__(type(self))
        vars(view).update(vars(self), **changed)
        return view

    def split(self, x: Tensor, size: int) -> tuple[Victim, ...]:
        """A view for each part of a batch of all images, of this view, that ``torch.split(x, size)`` makes."""
        whole = None if self.harvest is None else self.harvest.everyone if self.rows is None else self.rows
        whole = self.target if whole is None and self.target is not None and self.target.dim() else whole
        if whole is None or len(x) != len(whole):
            return (self,) * max(1, -(-len(x) // size))
        return tuple(self.of(slice(start, start + size)) for start in range(0, len(x), size))

    def _once(self, x: Tensor) -> Tensor:
        """One call of the model."""
        self.cost.forwards += len(x) * self.nets
        logits = self.answers(x)
        if logits.dtype in (torch.float16, torch.bfloat16) or (self._fast and self.precision == torch.float32):
            logits = logits.float()  # of an attack's copy alone where that loses digits: they may decide
        if self.remedy.probabilities:
            return logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
        return logits

    def answers(self, x: Tensor) -> Tensor:
        """What the model itself returns for a batch, (N, K), without counting and without the remedy.

        Raises:
            VictimError: It does not return (N, K) logits.
        """
        self._shared.last = len(x)
        if self._shared.layout == "asked" and len(x):  # of one image, too: the next shard finds it decided
            pair = x[:2] if len(x) > 1 else x.expand(2, *x.shape[1:])
            self._shared.layout = "channels last" if self._works_relaid(pair.detach()) else "its own"
        if self.chunk is None:
            try:
                return self._call(x)
            except (UserError, torch.OutOfMemoryError):
                raise
            except Exception:
                if self._shared.layout == "channels last":  # a part that was not tried may need the usual order
                    self._lay_out(last=False)
                    self._shared.layout = "its own"
                    return self.answers(x)
                if len(x) <= SURE:
                    raise
            self.chunk = SURE  # it may take no more at once than it was tried with
        parts = torch.split(x, self.chunk)
        if x.requires_grad and torch.is_grad_enabled():  # a backward pass makes again what it needs
            return torch.cat([checkpoint(self._call, part, use_reentrant=False) for part in parts])
        return torch.cat([self._call(part) for part in parts])

    def _call(self, x: Tensor) -> Tensor:
        """Ask the model, with images and logits that nobody else holds."""
        logits = self.model(x.clone(memory_format=torch.contiguous_format))
        self._check(logits, len(x))
        own: Tensor = logits.clone()
        return own

    def _lay_out(self, *, last: bool) -> None:
        self._shared.model.to(memory_format=torch.channels_last if last else torch.contiguous_format)

    @torch.no_grad()
    def _works_relaid(self, x: Tensor) -> bool:
        """Whether the model gives images the same logits with its channels last; if so, it stays that way."""

        def ask() -> Tensor:
            with determinism.isolated(_VOTE_SEED, self.device):
                return self._call(x)

        try:
            usual = ask()
            self._lay_out(last=True)
            found = agreement(usual, ask())
        except Exception:  # such as a view() of what is not contiguous any more
            found = None
        if found is not None and found.change <= RELAID:
            return True
        self._lay_out(last=False)
        return False

    def narrow(self, images: int) -> bool:
        """Call the model with half as many images at once, after a batch of so many was too much for the memory.

        The batch that an attack sees stays as it is, and so do its random draws and its numbers, up to rounding; a
        model that draws for itself draws in another order. Peak memory falls with the chunk, also of a backward pass,
        which costs a forward pass more then; those are no passes that the attack asked for.

        Returns:
            False if there is nothing left to halve.
        """
        size = min(images, self.chunk or images)
        if size <= 1:
            return False
        self.chunk = (size + 1) // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def sparing(self, images: int, work: Callable[[], T]) -> T:
        """Do something with a batch of so many images, from the start again with fewer at once until it fits.

        Passes of what did not fit are not counted.

        Raises:
            torch.OutOfMemoryError: There was not even room for one.
        """
        before = PassCount(self.cost.forwards, self.cost.backwards)
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                self.cost.forwards, self.cost.backwards = before.forwards, before.backwards
                if not self.narrow(max(images, self._shared.last)):
                    raise

    def _count_backward(self, grad: Tensor | None) -> None:
        if grad is not None:  # None: a function of the model's own passes no gradient on
            self.cost.backwards += len(grad) * self.remedy.draws * self.nets

    def _check(self, logits: object, n: int) -> None:
        if not isinstance(logits, Tensor):
            raise VictimError(f"the model returned {type(logits).__name__}, expected a tensor of logits (N, K)")
        shape = tuple(logits.shape)
        if len(shape) != 2 or shape[0] != n or shape[1] < 2:
            raise VictimError(f"the model returned shape {shape} for {n} images, expected logits ({n}, K) with K >= 2")
        if self._outputs is not None and shape[1] != self._outputs:
            raise OtherClasses(f"the model returned {shape[1]} logits, the data set has {self._outputs} classes")
        if not logits.is_floating_point():
            raise VictimError(f"the model returned {logits.dtype}, expected floating-point logits")

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """What the model itself returns for images, (N, K) and finite, without counting and without the remedy.

        Raises:
            VictimError: The model raises, wrong output shape, or a logit that is not finite.
        """
        x = x.to(self.device, torch.float32)
        with to_be_answered():
            return _finite(self.sparing(len(x), lambda: self.answers(x)))

    def predict(self, x: Tensor) -> Tensor:
        """Predicted labels, int64 (N,), without counting: for the referee, not for attacks.

        Raises:
            VictimError: It raises, its output has a wrong shape, or a logit is not finite (NaN would read as class 0).
        """
        labels: Tensor = self.ballots(x).argmax(1)
        return labels

    @torch.no_grad()
    def ballots(self, x: Tensor, seen: hashlib._Hash | None = None) -> Tensor:
        """How often each label was given in :attr:`votes` calls, int64 (N, K), without counting.

        Votes of a stochastic model are drawn under one fixed seed, so that asking again gives the same ballots; the
        caller's generators stay where they are. A deterministic model is called once.

        Args:
            x: Images (N, C, H, W).
            seen: Is given the bytes of all logits, call by call.

        Raises:
            VictimError: As :meth:`predict`.
        """
        before = self.cost.forwards
        try:
            with to_be_answered():
                return self.sparing(len(x), lambda: self._ballots(x, seen))
        finally:
            self.cost.forwards = before

    def _ballots(self, x: Tensor, seen: hashlib._Hash | None) -> Tensor:
        if self.votes is None:  # unseeded: one that draws all the same is to be found out
            return self._ballot(x, seen)
        with determinism.isolated(_VOTE_SEED, self.device):
            return torch.stack([self._ballot(x, seen) for _ in range(self.votes)]).sum(0)

    def _ballot(self, x: Tensor, seen: hashlib._Hash | None) -> Tensor:
        logits = _finite(self(x))
        if seen is not None:
            seen.update(logits.cpu().contiguous().numpy().data)
        return torch.zeros_like(logits, dtype=torch.int64).scatter_(1, logits.argmax(1, keepdim=True), 1)

    @contextmanager
    def counted(self) -> Iterator[PassCount]:
        """Count the passes of a block: the yielded :class:`PassCount` is complete when the block ends."""
        before = PassCount(self.cost.forwards, self.cost.backwards)
        cost = PassCount()
        try:
            yield cost
        finally:
            cost.forwards = self.cost.forwards - before.forwards
            cost.backwards = self.cost.backwards - before.backwards

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Give the model back as it was when the block ends, whatever the block did to it.

        Eval mode and frozen parameters are restored in silence: toolkits set such things. Changed weights are not
        a matter of style: whoever attacked that model attacked another one, and so would everybody after.

        Raises:
            ModelChangedError: Weights or buffers are not what they were; they have been put back.
        """
        saved = {name: value.clone() for name, value in self._state().items()}
        try:
            yield
        finally:
            now = self._state()
            changed = [name for name, value in saved.items() if name not in now or not _same(value, now[name])]
            if changed:
                self.model.load_state_dict(saved, strict=False)
            for module in self.modules():
                module.training = False
            self.requires_grad_(False).zero_grad(set_to_none=True)
        if changed:
            raise ModelChangedError(f"the attack changed the model it was given ({', '.join(changed[:3])})")

    def _state(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}


@contextmanager
def to_be_answered() -> Iterator[None]:
    """Images in [0, 1] are shown meanwhile, all of which a model has to answer: what it raises is its own fault.

    Raises:
        VictimError: It raised something other than for want of memory.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise VictimError(
            f"the model raises on some images in [0, 1], all of which it has to answer: {said(error)}"
        ) from error


def _in_one_layout(model: nn.Module) -> bool:
    """Whether it has convolutions of images, all its tensors of four dimensions laid out as usual."""
    tensors = [value for value in (*model.parameters(), *model.buffers()) if value.dim() == 4]
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return convolves and all(value.is_contiguous() for value in tensors)


def rounded(x: Tensor, steps: int = 255) -> Tensor:
    """Images on a grid of so many steps of [0, 1]: 255 as an image file of 8 bits holds them."""
    return (x * steps).round() / steps


def _target_or_not(logits: Tensor, target: Tensor) -> Tensor:
    """Logits (N, 2) of whatever is not the target, and of the target: the largest of the others', and its own."""
    if target.dim() and len(target) != len(logits):
        raise ValueError(
            f"a batch of {len(logits)} images for {len(target)} targets: say victim.of(rows) for whose it is"
        )
    column = target.expand(len(logits)).unsqueeze(1)
    others = logits.scatter(1, column, -torch.inf).amax(1, keepdim=True)
    return torch.cat([others, logits.gather(1, column)], 1)


def _finite(logits: Tensor) -> Tensor:
    """The logits, if all are finite: NaN would read as class 0."""
    bad = ~torch.isfinite(logits).all(1)
    if bad.any():
        raise VictimError(f"the model returned NaN or infinite logits for {int(bad.sum())} of {len(logits)} images")
    return logits


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN equals NaN."""
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def input_gradient(
    victim: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and logits of an objective, (N,) of logits (N, K), in one forward and one backward pass.

    Of an ensemble whose losses are averaged the mean of the objective over its members, and of their logits.

    Returns:
        ``(values (N,), gradient like x, logits (N, K))``, all detached. The objective is summed over the
        batch, so a sample's gradient does not depend on the batch size. Values have the images' dtype, whatever the
        model answers in.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        if isinstance(victim, Victim) and victim.members:
            each = [member(x) for member in victim.members]
            values, logits = torch.stack([objective(one) for one in each]).mean(0), torch.stack(each).mean(0)
        else:
            logits = victim(x)
            values = objective(logits)
        (grad,) = torch.autograd.grad(values.sum(), x)
    return values.detach().to(x.dtype), grad, logits.detach()
