"""Known layers are read off a call: the network is the one that torch's tracer finds, and nothing else is read so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.certify import certify, prepare
from harness.certify.bounds import taken_apart
from harness.certify.calls import Uncovered
from harness.certify.layers import recorded
from harness.certify.nodes import Interval
from harness.certify.trace import trace
from harness.models.purifier import Autoencoder, Purified
from harness.models.registry import ARCHITECTURES, build_model
from harness.threat import Threat


def made(name: str) -> tuple[nn.Module, Tensor]:
    """An architecture, or one behind an autoencoder, and images that it takes."""
    torch.manual_seed(0)
    shape = (1, 8, 33) if name.endswith("-32") else (1, 8, 8)
    model: nn.Module = build_model(name.removeprefix("purified "), shape, 10)
    if name.startswith("purified"):
        model = Purified(Autoencoder(shape, (9,)), model)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return model.eval().requires_grad_(False), torch.rand(1, *shape)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "mlp-20-20", "mlp-sigmoid-20", "purified mlp-20"])
def test_both_ways_take_an_architecture_apart_alike(name: str) -> None:
    """Node by node: kind, shape, parents, bounds, and what linear functions of it turn into."""
    model, x = made(name)
    one, other = taken_apart(model, x, recorded), taken_apart(model, x, trace)
    assert [type(node) for node in one.made] == [type(node) for node in other.made]
    assert one.tail == other.tail
    known = []
    for built in (one, other):
        at = {built.image: Interval((x.double() - 0.01).clamp_min(0), (x.double() + 0.01).clamp_max(1))}
        for node in built.made[1:]:
            at[node] = node.interval(*(at[parent] for parent in node.parents))
        known.append(at)
    places = [{node: number for number, node in enumerate(built.made)} for built in (one, other)]
    assert places[0][one.output] == places[1][other.output]
    for mine, its in zip(one.made[1:], other.made[1:], strict=True):
        assert mine.shape == its.shape
        assert [places[0][parent] for parent in mine.parents] == [places[1][parent] for parent in its.parents]
        slopes = torch.randn(1, 1, *mine.shape, dtype=torch.float64)
        sides = []
        for node, at in ((mine, known[0]), (its, known[1])):
            pulled = node.pull(slopes, tuple(at[parent] for parent in node.parents), at[node].error)
            sides.append([*at[node][:2], *pulled.parts, torch.as_tensor(pulled.constant)])
        assert all(torch.equal(a, b) for a, b in zip(*sides, strict=True))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval().requires_grad_(False)


class Turning(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def _hook(model: nn.Sequential) -> None:
    model[1].register_forward_hook(lambda part, given, out: -out)


def _early(model: nn.Sequential) -> None:
    model[1].register_forward_pre_hook(lambda part, given: (-given[0],))


def _method(model: nn.Sequential) -> None:
    model[2].forward = torch.neg


def _subclass(model: nn.Sequential) -> None:
    model[2] = Turning()


def _writing(model: nn.Sequential) -> None:
    model[2] = nn.ReLU(inplace=True)
    model.insert(0, nn.ReLU(inplace=True))


def _training(model: nn.Sequential) -> None:
    model[2].train()


def _batch(model: nn.Sequential) -> None:
    """One that normalises by the batch also in eval mode."""
    model.insert(0, nn.BatchNorm2d(1, track_running_stats=False))
    model.eval()


@pytest.mark.parametrize("change", [_hook, _early, _method, _subclass, _writing, _training])
def test_what_is_not_its_class_is_left_to_the_tracer(change: Callable[[nn.Sequential], None]) -> None:
    model, x = net(), torch.rand(3, 1, 2, 2)
    recorded(model, x)
    change(model)
    with pytest.raises(Uncovered, match=r"known layers|in place"):
        recorded(model, x)


def test_hooks_of_all_modules_are_no_layer() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda part, given, out: None)
    try:
        with pytest.raises(Uncovered, match="known layers"):
            recorded(net(), torch.rand(3, 1, 2, 2))
    finally:
        handle.remove()


def test_a_batch_that_is_normalised_by_itself_has_no_bound() -> None:
    model, x = net(), torch.rand(3, 1, 2, 2)
    _batch(model)
    found = certify(model, x, torch.zeros(3, dtype=torch.int64), Threat("linf", 1e-4))
    assert found.uncovered
    assert not found.certified.any()


def test_known_layers_need_no_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.export, "export")
    model, x = net(), torch.rand(3, 1, 2, 2)
    before = x.clone()
    found = certify(model, x, model(x).argmax(1), Threat("linf", 1e-6))
    assert found.certified.all()
    assert torch.equal(x, before)


def test_what_is_written_over_is_read_before() -> None:
    """ReLU in place, of a residual network, changes nothing that is kept."""
    model, x = net(), torch.rand(3, 1, 2, 2)
    fresh = prepare(model, x).bounds(x, model(x).argmax(1), Threat("linf", 0.01)).margins
    model[2] = nn.ReLU(inplace=True).eval()
    assert torch.equal(prepare(model, x).bounds(x, model(x).argmax(1), Threat("linf", 0.01)).margins, fresh)
