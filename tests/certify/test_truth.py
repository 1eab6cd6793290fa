"""Battery and certificates against exact truth, on one small network; five are in ``tests_slow``."""

from __future__ import annotations

import torch
from torch import nn

from harness.certify import prepare
from harness.datasets.registry import Dataset
from harness.threat import Threat
from tests.helpers.exact import breaking
from tests.helpers.truth import compared


def test_battery_and_certificates_meet_the_truth(trained: nn.Module, digits: Dataset) -> None:
    _, (x, y) = digits.test_sample(25)
    right = trained(x).argmax(1) == y
    x, y = x[right], y[right]
    truth = compared(trained, x, y, 0.08)
    assert not (truth.broken & truth.certified).any()
    assert truth.missed == truth.undecided == []
    assert truth.broken.any()
    assert truth.certified.any()


def test_the_exact_program_finds_what_is_there(trained: nn.Module, digits: Dataset) -> None:
    """It breaks what the battery breaks, and nothing that is certified."""
    _, (x, y) = digits.test_sample(12)
    right = trained(x).argmax(1) == y
    x, y = x[right], y[right]
    network, threat = prepare(trained, x), Threat("linf", 0.1)
    certified = network.bounds(x, y, threat).certified
    for row in range(len(x)):
        found = breaking(network, x[row : row + 1], int(y[row]), threat)
        if found is None:
            continue
        assert not certified[row]
        assert threat.within(x[row : row + 1], found).all()
        with torch.no_grad():
            assert trained(found).argmax() != y[row]
