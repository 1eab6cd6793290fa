"""Models of the kinds that people bring, each by a function: what ``test_doors`` lets in by both doors."""

from __future__ import annotations

import copy
from collections import namedtuple
from functools import cache

import numpy as np
import torch
from torch import nn

Out = namedtuple("Out", "logits features")


@cache
def _trained() -> nn.Module:
    from harness.datasets.registry import load_dataset

    x, y = load_dataset("digits").train
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with torch.enable_grad():
        for _ in range(120):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


class Around(nn.Module):
    def __init__(self, do):
        super().__init__()
        self.net, self.do, self.calls = copy.deepcopy(_trained()), do, 0

    def forward(self, x):
        self.calls += 1
        return self.do(self, x)


def plain():
    return copy.deepcopy(_trained())


def training():
    return copy.deepcopy(_trained()).train()


def writes_in_place():
    return Around(lambda self, x: self.net(x.clamp_(0, 0.9)))


def writes_by_data():
    def forward(self, x):
        x.data.clamp_(0, 0.8)
        return self.net(x)

    return Around(forward)


def writes_by_numpy():
    def forward(self, x):
        shared = x.detach().numpy()
        np.minimum(shared, 0.85, out=shared)
        return self.net(x)

    return Around(forward)


def inplace_first_layer():
    return nn.Sequential(nn.ReLU(inplace=True), copy.deepcopy(_trained()))


def keeps_its_input():
    def forward(self, x):
        self.last = x
        return self.net(x)

    return Around(forward)


def rounds():
    return Around(lambda self, x: self.net((x * 8).round() / 8))


def quantised():
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(_trained()), {nn.Linear}, dtype=torch.qint8)


def without_gradient():
    return Around(lambda self, x: self.net(x.detach()))


def probabilities():
    return Around(lambda self, x: self.net(x).softmax(1))


def large_logits():
    return Around(lambda self, x: 50 * self.net(x))


def random_input():
    return Around(lambda self, x: self.net(x + 0.2 * torch.randn_like(x)))


def in_a_tuple():
    return Around(lambda self, x: Out(self.net(x), x))


def in_a_dict():
    return Around(lambda self, x: {"loss": None, "logits": self.net(x)})


def as_maps():
    return Around(lambda self, x: self.net(x)[:, :, None, None])


def masked_class():
    mask = torch.zeros(10).index_fill_(0, torch.tensor([7]), -torch.inf)
    return Around(lambda self, x: self.net(x) + mask)


def other_order():
    return Around(lambda self, x: self.net(x)[:, [0, 1, 2, 3, 5, 4, 6, 7, 9, 8]])


def one_image():
    def forward(self, x):
        return self.net(x.view(1, 64)[None, 0])

    return Around(forward)


def eight_images():
    return Around(lambda self, x: self.net(x.reshape(8, 64)))


def double_inside():
    net = copy.deepcopy(_trained()).double()
    return Around(lambda self, x: net(x.double()))


def another_above_16():
    return Around(lambda self, x: self.net(x if len(x) <= 16 else x.flip(3)))


def another_above_70():
    return Around(lambda self, x: self.net(x if len(x) <= 70 else x.flip(3)))


def statistics_of_the_batch():
    return Around(lambda self, x: self.net(x) - self.net(x).mean(0))


def one_score():
    return Around(lambda self, x: self.net(x)[:, :1].sigmoid())


def untrained():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
