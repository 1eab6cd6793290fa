"""The objectives against their definitions."""

from __future__ import annotations

import pytest
import torch

from harness.attacks.losses import likely_rivals, objective


def test_objectives_are_what_they_say():
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0], [0.0, 4.0, 1.0, 2.0]])
    y, target = torch.tensor([0, 2]), torch.tensor([2, 0])
    p = logits.double().softmax(1)
    torch.testing.assert_close(
        objective("ce", logits, y, target).double(), torch.logit(p.gather(1, target[:, None])[:, 0])
    )
    torch.testing.assert_close(objective("ce", logits, y).double(), -torch.logit(p.gather(1, y[:, None])[:, 0]))
    assert objective("margin", logits, y).tolist() == [-2, 3]
    assert objective("margin", logits, y, target).tolist() == [-2.5, -1]
    assert objective("dlr", logits, y).tolist() == pytest.approx([-2 / 2.5, 3 / 3])
    assert objective("dlr", logits, y, target).tolist() == pytest.approx([-2.5 / 3.75, -1 / 3.5])
    assert likely_rivals(logits, y, 2).tolist() == [[1, 2], [1, 3]]
    assert likely_rivals(logits, y, 9).shape == (2, 3)


def test_dlr_of_equal_logits_has_a_gradient():
    logits = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(objective("dlr", logits, torch.tensor([0])).sum(), logits)
    assert grad.isfinite().all()
    assert grad.any()
