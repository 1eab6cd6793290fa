from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.external.interface import Interface, Interfaced, find
from harness.victims.victim import Victim, VictimError, input_gradient

Heads = collections.namedtuple("Heads", "features logits")


@dataclasses.dataclass
class Output:
    scores: Tensor
    hidden: Tensor


class Answering(nn.Module):
    """A small network of six classes with something done to its logits, and a limit on its batch."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any] = lambda z, x: z, takes: Any = lambda n: True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Tanh(), nn.Linear(12, 6))
        self.answer, self.takes = answer, takes

    def forward(self, x: Tensor) -> Any:
        if not self.takes(len(x)):
            raise RuntimeError(f"shape '[8, 48]' is invalid for input of size {x.numel()}")
        return self.answer(self.net(x), x)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(21, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def masked(z: Tensor, x: Tensor) -> Tensor:
    return z.masked_fill(torch.tensor([False, True, False, False, False, True]), -torch.inf)


@pytest.mark.parametrize(
    ("answer", "logits"),
    [
        (lambda z, x: z, ""),
        (lambda z, x: (z, x), "[0]"),
        (lambda z, x: [x.flatten(1), None, z], "[2]"),
        (lambda z, x: {"logits": z, "scores": z + 1}, '["logits"]'),
        (lambda z, x: {"out": z, "aux": None}, '["out"]'),
        (lambda z, x: collections.OrderedDict(loss=z.sum(), z=z), '["z"]'),
        (lambda z, x: Heads(z, 2 * z), ".logits"),
        (lambda z, x: Output(z, x), ".scores"),
        (lambda z, x: SimpleNamespace(logits=z, hidden_states=(x,)), ".logits"),
    ],
)
def test_logits_are_found_in_what_a_model_returns(answer: Any, logits: str, x: Tensor) -> None:
    model = Answering(answer)
    found = find(model, x, 6)
    assert found == Interface(logits=logits)
    served = Victim(found.around(model), classes=6)
    expected = model.net(x) * (2 if logits == ".logits" and isinstance(model(x), Heads) else 1)
    torch.testing.assert_close(served(x), expected)
    assert input_gradient(served, x, lambda z: z[:, 0])[1].abs().sum() > 0


def test_maps_and_masked_classes_are_served(x: Tensor) -> None:
    model = Answering(lambda z, x: z[:, :, None, None])
    assert find(model, x, 6) == Interface(maps=True)
    torch.testing.assert_close(find(model, x).around(model)(x), model.net(x))
    model = Answering(masked)
    served = find(model, x, 6).around(model)
    logits = served(x)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits[:, [0, 2, 3, 4]], model.net(x)[:, [0, 2, 3, 4]])
    assert torch.equal(logits.argmax(1), model(x).argmax(1))
    assert float(logits.detach().softmax(1)[:, [1, 5]].max()) < 1e-40
    _, grad, _ = input_gradient(Victim(served), x, lambda z: torch.logsumexp(z, 1))
    assert torch.isfinite(grad).all()
    assert grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda z, x: (z, z),
            r"the model returned tuple, .*\(N, 6\): which of \[0\], \[1\] are they\? return that alone",
        ),
        (
            lambda z, x: {"a": x, "b": z[:, :2]},
            r'returned dict, .*; none is among \["a"\] \(16, 3, 4, 4\), \["b"\] \(16, 2\)',
        ),
        (
            lambda z, x: torch.sigmoid(z[:, :1]),
            r"one score an image, shape \(16, 1\); return .*torch.cat\(\[-z, z\], 1\)",
        ),
        (lambda z, x: z[:, 0], r"one score an image, shape \(16,\); return logits"),
        (lambda z, x: "cat", "the model returned str, expected a tensor of logits"),
        (lambda z, x: None, "the model returned NoneType, expected a tensor of logits"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_remedy(answer: Any, said: str, x: Tensor) -> None:
    with pytest.raises(UserError, match=said) as raised:
        find(Answering(answer), x, 6)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("takes", "batch", "fixed"),
    [
        (lambda n: n == 1, 1, False),
        (lambda n: n <= 4, 4, False),
        (lambda n: n <= 11, 8, False),
        (lambda n: n == 8, 8, True),
        (lambda n: n == 100, 100, True),
    ],
)
def test_batches_that_a_model_takes(takes: Any, batch: int, fixed: bool, x: Tensor) -> None:
    model = Answering(takes=takes)
    found = find(model, x, 6)
    assert found == Interface(batch=batch, fixed=fixed)
    served = found.around(model)
    assert isinstance(served, Interfaced)
    for n in (1, 8, 21):
        torch.testing.assert_close(served(x[:n]), model.net(x[:n]))
    expected = torch.autograd.functional.jacobian(lambda x: model.net(x).sum(), x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(lambda x: served(x).sum(), x), expected)


def test_a_batch_that_the_user_names_is_tried(x: Tensor) -> None:
    assert find(Answering(takes=lambda n: n == 10), x, 6, batch=10) == Interface(batch=10, fixed=True)
    assert find(Answering(), x, 6, batch=10) == Interface(batch=10)
    with pytest.raises(RuntimeError, match="is invalid for input"):
        find(Answering(takes=lambda n: n == 10), x, 6, batch=9)


def test_a_model_that_takes_nothing_says_what_it_said_first(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="input of size 768"):
        find(Answering(takes=lambda n: False), x, 6)


def test_a_model_that_takes_fewer_than_a_shard_is_asked_in_parts(x: Tensor) -> None:
    model = Answering(takes=lambda n: n <= 70)
    many = x[torch.arange(200) % len(x)]
    victim = Victim(model, classes=6)
    torch.testing.assert_close(victim(many), model.net(many))
    _, grad, _ = input_gradient(victim, many, lambda z: z[:, 0])
    assert grad.abs().flatten(1).sum(1).min() > 0
    with pytest.raises(RuntimeError, match="is invalid"):
        Victim(Answering(takes=lambda n: n < 3), classes=6)(many)


def test_too_little_memory_is_no_property_of_a_model(x: Tensor) -> None:
    def answer(z: Tensor, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("a lot")
        return z

    assert find(Answering(answer), x, 6) == Interface()


def test_an_interface_says_what_it_is() -> None:
    assert not Interface()
    assert str(Interface(logits="[0]", batch=1)) == "its logits are [0] of what it returns, at most 1 image at once"
    assert str(Interface(masked=True, batch=8, fixed=True)).endswith("exactly 8 images at once")
    with pytest.raises(UserError, match="batch must be at least 1"):
        Interface(batch=-1)


def test_a_bare_victim_says_what_is_missing(x: Tensor) -> None:
    with pytest.raises(VictimError, match="the model returned tuple"):
        Victim(Answering(lambda z, x: (z, x)))(x)
