"""What can be proved of a model's images: its own certificate, or bounds of the network, within a limit of cost."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .. import determinism, identity
from ..attacks.losses import objective
from ..certify import Certificate, Network, prepare
from ..certify.calls import Mode, Uncovered
from ..errors import describe
from ..planning.specs import CERTIFIED_SHARD, Certification, ModelSpec
from ..schema.certificates import CertificateFacts, CertifiedLevel
from ..threat import EXPONENT, Threat, steepest
from ..victims.victim import Victim, input_gradient

_UNITS: Final = frozenset(
    {"relu", "relu_", "sigmoid", "tanh", "max_pool2d_with_indices", "amax", "maximum", "gelu", "silu", "hardtanh"}
)
"""Operations whose every output needs a linear bound of its own."""


INTERVAL_PASSES: Final = 3
"""Passes of an image that intervals at one eps cost: its middle, its radius, and the last layer once more."""


TRIED: Final = 8
"""Images of a shard that intervals are tried on first."""

STEPS: Final = (1.0, 0.5, 0.5, 0.25, 0.25)
"""Gradient steps that are taken first, as shares of eps."""

BROKEN: Final = f"not tried, for a few gradient steps break the first {TRIED} images"
"""Why nothing is proved then."""


@runtime_checkable
class Certifying(Protocol):
    """A model of ours with a certificate of its own, which holds for an image with probability 1 - alpha at least.

    It is a statement about the model's expectation, while the referee sees finitely many draws: an image may be broken
    and its certificate hold.

    Attributes:
        alpha: See above.
        certificate_passes: Passes of an image that its certificates take.
    """

    alpha: float
    certificate_passes: int

    def certificates(
        self, x: Tensor, y: Tensor, threats: Sequence[Threat], *, quick: bool = False
    ) -> list[Certificate]:
        """What it proves of images (N, C, H, W) with labels (N,), threat by threat; random numbers are torch's.

        If it is to be ``quick``, margins may be any that tell what is certified.
        """
        ...


def prove(
    asked: Sequence[Certification],
    shard: int,
    model: nn.Module,
    index: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    device: torch.device | str = "cpu",
) -> list[CertificateFacts]:
    """Certify one shard of images of a model, in every norm and at every eps of some declarations.

    Only images that the model gets right are asked about, and of those that are not certified at one eps nothing is
    asked at a larger one, whose ball holds the smaller. What goes wrong in bounding certifies nothing, and is said.

    Args:
        asked: The declarations, of one model, number of images and kind; it is taken apart once for all of them.
        shard: Which of their shards.
        model: The model as it is judged.
        index: Positions of the shard's images in the test set, int64 (N,).
        x: They, float32 (N, C, H, W) in [0, 1].
        y: Their labels, int64 (N,).
        classes: Number of classes.
        device: Where to run.

    Raises:
        VictimError: The model cannot be judged.
    """
    defense = asked[0].model.defense
    victim = Victim(model, classes=classes, device=device, votes=defense.remedy.calls)
    model = victim.model  # a copy in eval mode: the caller's stays as it is
    own = _own(asked[0].model, model)
    x, y = x.to(device), y.to(device)
    price, uncovered, network = 1, "", None
    start = time.perf_counter()
    try:
        if own is not None:
            price = own.certificate_passes
        elif defense.remedy.stochastic:
            raise Uncovered("it draws at random")
        else:
            price = INTERVAL_PASSES if asked[0].intervals else cost(model, x[:1])
            if any(one.affordable(price) > one.shard_slice(shard).start for one in asked):
                uncovered = BROKEN if _in_vain(victim, asked, x, y) else ""
                network = None if uncovered else prepare(model, x)
    except Uncovered as error:
        uncovered = str(error)
    except Exception as error:  # a missing bound is no fault of the model, and no result is lost for it
        uncovered = describe(error)
    taken = (time.perf_counter() - start) / len(asked)
    found = []
    for one in asked:
        start = time.perf_counter()
        kept = max(min(len(x), one.affordable(price) - one.shard_slice(shard).start), 0)
        threats = [Threat(one.norm, eps) for eps in one.grid]
        proofs, why = [_nothing(kept) for _ in threats], uncovered
        if kept and not uncovered:
            right = victim.predict(x[:kept]) == y[:kept]
            if network is not None:
                lines = not one.intervals
                proofs, why = _bounds(network, x[:kept], y[:kept], right, threats, lines=lines)
            elif own is not None:
                with determinism.isolated(identity.derive_seed(one.seed, shard), device):
                    each = own.certificates(x[:kept], y[:kept], threats, quick=one.intervals)
                proofs = [Certificate(proof.certified & right.cpu(), proof.margins) for proof in each]
        levels = tuple(
            CertifiedLevel(eps=eps, certified=tuple(proof.certified.tolist()), margins=tuple(proof.margins.tolist()))
            for eps, proof in zip(one.grid, proofs, strict=True)
        )
        found.append(
            CertificateFacts(
                norm=one.norm,
                n=one.n,
                index=tuple(index[:kept].tolist()),
                levels=levels,
                uncovered=why,
                alpha=None if own is None else own.alpha,
                cost=price,
                seconds=taken + time.perf_counter() - start,
            )
        )
    return found


def refuted(model: nn.Module, facts: CertificateFacts, x: Tensor, y: Tensor) -> dict[float, int]:
    """How many images that facts call certified are not certified when bounds are computed again, by eps.

    Nothing is asked of proofs by draws, whose random numbers are not in the facts.

    Args:
        model: The model in eval mode, on the device of the images.
        facts: What is said of it.
        x: The images that the facts are of, float32 (N, C, H, W) in [0, 1].
        y: Their labels, int64 (N,).

    Raises:
        Uncovered: There is no bound for the model.
    """
    said = [level for level in facts.levels if any(level.certified)]
    if facts.alpha is not None or not said:
        return {}
    network, wrong = prepare(model, x[:1]), Counter[float]()
    for level in said:  # a forged record may hold one eps twice
        rows = torch.tensor(level.certified, dtype=torch.bool, device=x.device).nonzero().squeeze(1)
        for part in rows.split(CERTIFIED_SHARD):  # type: ignore[no-untyped-call]
            proved = network.bounds(x[part], y[part], Threat(facts.norm, level.eps))  # type: ignore[arg-type]
            if proved.uncovered:
                raise Uncovered(proved.uncovered)
            wrong[level.eps] += int((~proved.certified).sum())
    return {eps: n for eps, n in wrong.items() if n}


def alpha_of(spec: ModelSpec, model: nn.Module) -> float | None:
    """Probability that what a model proves of itself does not hold; None where bounds prove it, without chance."""
    own = _own(spec, model)
    return None if own is None else own.alpha


def _own(spec: ModelSpec, model: nn.Module) -> Certifying | None:
    """The model, if it has proofs of its own: what is made elsewhere is not believed when it speaks of itself."""
    return model if isinstance(model, Certifying) and spec.defense.trainable else None


def _in_vain(victim: Victim, asked: Sequence[Certification], x: Tensor, y: Tensor) -> bool:
    """Whether intervals are asked for, and a few gradient steps break the first images, in every norm.

    Of what an attack breaks nothing is to be proved, and to take a large network apart costs more than the steps.
    """
    return asked[0].intervals and all(_fall(victim, x, y, Threat(one.norm, one.grid[0])) for one in asked)


def _fall(victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> bool:
    """Whether gradient steps break all of the first images that a model gets right; False where it has none."""
    assert threat.eps is not None
    try:
        rows = (victim.predict(x) == y).nonzero().squeeze(1)[:TRIED]
        x, y = x[rows], y[rows]
        if not len(rows):
            return False
        x_adv, left = x, torch.ones_like(y, dtype=torch.bool)
        for length in STEPS:
            _, grad, _ = input_gradient(victim, x_adv, lambda logits: objective("margin", logits, y))
            x_adv = threat.project(x, x_adv + length * threat.eps * steepest(grad, EXPONENT[threat.norm]))
            left &= (victim.predict(x_adv) == y) | ~threat.within(x, x_adv)
            if not left.any():
                return True
    except Exception:  # whatever it is, to take the model apart says more
        return False
    return False


def _nothing(images: int) -> Certificate:
    return Certificate(torch.zeros(images, dtype=torch.bool), torch.full((images,), torch.nan, dtype=torch.float64))


def _bounds(
    network: Network, x: Tensor, y: Tensor, right: Tensor, threats: Sequence[Threat], *, lines: bool
) -> tuple[list[Certificate], str]:
    """Bounds at ascending eps of the images that are right, and why there are none."""
    found = [_nothing(len(x)) for _ in threats]
    rows = right.nonzero().squeeze(1)
    for threat, one in zip(threats, found, strict=True):
        if not len(rows):
            break
        try:
            first = threat is threats[0]
            if not lines and first:  # of a network that was not trained for them intervals prove nothing
                few = rows[:TRIED]
                if not network.hopeful(x[few], y[few], threat):
                    break
            proved = network.bounds(x[rows], y[rows], threat, lines=lines, again=not first)
        except Exception as error:
            return [_nothing(len(x)) for _ in threats], describe(error)
        if proved.uncovered:
            return [_nothing(len(x)) for _ in threats], proved.uncovered
        one.certified[rows.cpu()] = proved.certified.cpu()
        one.margins[rows.cpu()] = proved.margins.cpu().double()
        rows = one.certified.nonzero().squeeze(1).to(rows.device)
    return found, ""


class _Meter(Mode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations, and those of every linear bound on the way down from where it is needed."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports triton

        super().__init__()  # type: ignore[no-untyped-call]
        self.known = flop_registry
        self.flops = 0
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        if operation in self.known:
            self.flops += self.known[operation](*args, **(kwargs or {}), out_val=out)
        elif operation.__name__ in _UNITS:
            first = out[0] if isinstance(out, tuple) else out
            self.rows += first.numel() * self.flops
        return out


@torch.no_grad()
def cost(model: nn.Module, x: Tensor) -> int:
    """Passes of an image that a certificate at one eps costs, from one image (1, C, H, W); no image is certified.

    Linear bounds of every unit that one is needed of, each as much as two passes from there back to the image and on
    again (so measured on LeNet in L-infinity; in L2 it is twice that).
    """
    with _Meter() as meter:
        model(x.clone())  # it may write into them
    return 1 + math.ceil(4 * meter.rows / meter.flops) if meter.flops else 1
