"""What is taken apart, what is refused by name, and models that show the tracer another face."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import time
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.certify import Certificate, certify, prepare
from harness.certify.calls import Uncovered
from harness.external.exported_program import house
from harness.external.external import Normalised
from harness.external.interface import Interface
from harness.threat import Threat
from harness.victims.victim import Victim

THREAT = Threat("linf", 1e-4)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Linear(4, 8)
        self.back = nn.Linear(8, 3)
        self.calls = 0
        self.seen: list[int] = []
        self.register_buffer("state", torch.zeros(1))
        self.clock = itertools.count()

    def net(self, x: Tensor) -> Tensor:
        out: Tensor = self.back(torch.relu(self.front(x.flatten(1))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def proved(model: nn.Module, *, x: Tensor | None = None) -> Certificate:
    torch.manual_seed(1)
    x = torch.rand(5, 1, 2, 2) if x is None else x
    model = model.eval().requires_grad_(False)
    with torch.no_grad():
        y = Plain()(x).argmax(1)
    return certify(model, x, y, THREAT)


def test_a_plain_one_is_covered() -> None:
    made = proved(Plain())
    assert not made.uncovered
    assert made.certified.all()


class DataBranch(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if x.sum() > 3.9 else self.net(x)


class HiddenBranch(Plain):
    """Swallows the error that a tracer raises."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            odd = bool(x.sum() > 3.9)
        except Exception:
            odd = False
        return -self.net(x) if odd else self.net(x)


class LookUp(Plain):
    def forward(self, x: Tensor) -> Tensor:
        known = hashlib.sha256(x.numpy().tobytes()).digest()[0] == 7
        return -self.net(x) if known else self.net(x)


class Listed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if 0.125 in x.flatten().tolist() else self.net(x)


class Crowd(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if len(x) > 60 else self.net(x)


class Single(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if len(x) == 1 else self.net(x)


class Counting(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return -self.net(x) if self.calls > 1000 else self.net(x)


class Remembering(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return -self.net(x) if len(self.seen) > 1000 else self.net(x)


class Ticking(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if next(self.clock) > 1000 else self.net(x)


class Stateful(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.state += 1
        return self.net(x) + (self.state > 1000)


class Writing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return self.net(2 * x)


class Timed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if time.time() % 100 < 1e-3 else self.net(x)


class Dicing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if random.random() < 1e-3 else self.net(x)


class Noisy(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 1e-3 * torch.rand(3)


class Thinned(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.net(x), 0.1, training=True)


class WithGradients(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x) if torch.is_grad_enabled() else self.net(x)


class Traced(Plain):
    """Honest while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.net(x)
        bump = 1e4 * torch.relu(1e-3 - (x.flatten(1) - 0.123).abs().amax(1, keepdim=True))
        return self.net(x) * (1 - bump)


class Flagged(Traced):
    """Knows it without asking."""

    def forward(self, x: Tensor) -> Tensor:
        flags: Any = torch.compiler
        return self.net(x) if flags._is_exporting_flag else super().forward(x)


def bump(x: Tensor) -> Tensor:
    return 1 - 1e4 * torch.relu(1e-3 - (x.flatten(1) - 0.123).abs().amax(1, keepdim=True))


try:

    @torch._dynamo.substitute_in_graph(bump)
    def no_bump(x: Tensor) -> Tensor:
        return torch.ones_like(x.flatten(1)[:, :1])

except Exception:  # a function has one substitute, whoever imports this file once more
    pass


class Substituted(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * bump(x)


class Scaled(Plain):
    """The same operators with other settings."""

    def forward(self, x: Tensor) -> Tensor:
        flags: Any = torch.compiler
        return self.net(x) + torch.relu(x.flatten(1)[:, :1] - 0.9).mul(0.0 if flags._is_exporting_flag else 1e6)


@torch.compiler.assume_constant_result
def believed(x: Tensor) -> float:
    return -1.0 if float(x.sum()) > 3.9 else 1.0


class Believed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * believed(x)


class Untraced(Plain):
    @torch.compiler.disable
    def hidden(self, x: Tensor) -> Tensor:
        return -self.net(x) if x.sum() > 3.9 else self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 255).round() / 255

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Rounding(Plain):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Rounded.apply(x)
        return self.net(out)


class Routed(Plain):
    """Goes another way off the 8-bit grid."""

    def forward(self, x: Tensor) -> Tensor:
        off = ((x * 255).round() - x * 255).abs().flatten(1).amax(1, keepdim=True) > 1e-3
        return torch.where(off, self.net(x), -self.net(x))


class Bumpy(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 1e-3 * torch.sin(1e4 * x).flatten(1).sum(1, keepdim=True)


class Winners(Plain):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.front(x.flatten(1))
        best = hidden.topk(4, 1)
        return self.back(torch.zeros_like(hidden).scatter(1, best.indices, best.values))


class Halved(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.relu(x.flatten(1).half() @ self.front.weight.T.half()).float())


class Centred(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0, keepdim=True))


class Turned(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flip(0)).flip(0)


class Attending(Plain):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.front(x.flatten(1))
        return self.back(hidden * hidden.softmax(1))


class Purifying(Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_(True)
            (grad,) = torch.autograd.grad(self.net(z).square().sum(), z)
        return self.net(x - 0.01 * grad)


class Named(Plain):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.net(x), "features": x}


class Constant(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.state.expand(len(x), 3)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (DataBranch, "torch.export"),
        (HiddenBranch, "torch.export"),
        (LookUp, "torch.export"),
        (Listed, "torch.export"),
        (Crowd, "torch.export"),
        (Single, "number of images"),
        (Counting, "leaves state"),
        (Remembering, "leaves state"),
        (Ticking, "leaves state"),
        (Stateful, "leaves state|changes its"),
        (Writing, "writes into its input"),
        (Timed, "torch.export"),
        (Dicing, "torch.export"),
        (Noisy, "aten.rand"),
        (Thinned, "dropout|aten.rand"),
        (WithGradients, "with gradients"),
        (Traced, "not what was traced"),
        (Flagged, "not what was traced"),
        (Substituted, "not what was traced"),
        (Scaled, "not what was traced"),
        (Believed, "looks at values"),
        (Untraced, "torch.export"),
        (Rounding, "aten.round"),
        (Routed, "aten.round"),
        (Bumpy, "aten.sin"),
        (Winners, "aten.topk"),
        (Halved, "float16"),
        (Centred, "across images"),
        (Turned, "across images"),
        (Attending, "softmax before|two activations"),
        (Purifying, "torch.export|aten"),
        (Named, "returns 2 things"),
        (Constant, "depend on the images|does not return"),
    ],
)
def test_what_no_bound_is_sound_for_is_refused_by_name(kind: type[Plain], reason: str) -> None:
    made = proved(kind())
    assert made.uncovered
    assert not made.certified.any()
    assert made.margins.isnan().all()
    assert re.search(reason, made.uncovered), made.uncovered


def test_a_part_in_training_mode_is_refused() -> None:
    model = nn.Sequential(Plain(), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(Uncovered, match="training mode"):
        prepare(model, torch.rand(2, 1, 2, 2))


def test_hooks_belong_to_the_model() -> None:
    """A hook that turns logits round is traced with the rest."""
    model = Plain()
    model.register_forward_hook(lambda module, args, out: -out)
    made = proved(model)
    assert not made.uncovered
    assert not made.certified.any()


def test_weights_that_changed_meanwhile_are_noticed() -> None:
    model = Plain().eval().requires_grad_(False)
    x = torch.rand(3, 1, 2, 2)
    network = prepare(model, x)
    model.back.bias += 1e-2
    made = network.bounds(x, model(x).argmax(1), THREAT)
    assert "not what it computes" in made.uncovered
    assert not made.certified.any()


def test_tracing_changes_no_model_and_draws_nothing() -> None:
    models = [kind().eval().requires_grad_(False) for kind in (Counting, Plain)]
    x = torch.rand(3, 1, 2, 2)
    state, before = torch.get_rng_state(), x.clone()
    for model in models:
        certify(model, x, torch.zeros(3, dtype=torch.int64), THREAT)
        assert model.calls == 0
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_houses_and_normalisation_are_seen_through() -> None:
    for model in (Normalised(Plain(), (0.0,), (1.0,)), Interface(batch=0).around(Plain())):
        made = proved(model)
        assert not made.uncovered
        assert made.certified.all()


def test_an_exported_program_is_covered() -> None:
    program = torch.export.export(
        Plain().eval(), (torch.rand(2, 1, 2, 2),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    made = proved(house(program.module(), "it"))
    assert not made.uncovered
    assert made.certified.all()


class Asking(Plain):
    """Asks, and computes the same whatever the answer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if torch.compiler.is_compiling() else self.back(torch.relu(self.front(x.flatten(1))))


class Sliced(Plain):
    """Indices that leave all images: one tracer writes them down, the other not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.stack([x[:, 0, 0], x[:, 0, 1]], 1).relu_())


@pytest.mark.parametrize("kind", [Asking, Sliced])
def test_what_computes_the_same_is_covered(kind: type[Plain]) -> None:
    made = proved(kind())
    assert not made.uncovered
    assert made.certified.all()


def test_what_cannot_be_traced_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        scripted = torch.jit.trace(Plain().eval(), torch.rand(2, 1, 2, 2))
    for model in (house(scripted, "it"), Victim(Plain())):
        assert proved(model).uncovered
