"""Exact truth about small ReLU networks in L-infinity, by mixed-integer programs (Tjeng et al. 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, eye_array, hstack
from torch import Tensor, nn

from harness.certify.bounds import Network
from harness.certify.nodes import Bent
from harness.threat import Threat

SURE = 1e-4
"""Margin by which a class has to win: less is lost in the solver's tolerance of 1e-6 and in float32."""


class TimeOut(Exception):
    """The solver ran out of time before it knew."""


def breaking(network: Network, x: Tensor, y: int, threat: Threat, seconds: float = 60.0) -> Tensor | None:
    """An image of the ball and the box that is misclassified, float32 like ``x`` (1, C, H, W); None: there is none.

    Of the network's layers, dense ones with ReLUs between them; a binary variable for each unit that can be on and off,
    between the bounds that certificates rest on. For each class that these do not rule out, any point where it wins.

    Raises:
        TimeOut: A class was not decided in time.
    """
    layers = [part for part in network.model.modules() if isinstance(part, nn.Linear)]
    weights = [layer.weight.detach().double().numpy() for layer in layers]
    biases = [layer.bias.detach().double().numpy() for layer in layers]
    assert threat.eps is not None
    image = x[0].flatten().double().numpy()
    known = network.values(x, threat)
    ends = [known[node.parents[0]] for node in network.nodes if isinstance(node, Bent)]
    assert len(ends) == len(layers) - 1
    widths = [weight.shape[0] for weight in weights[:-1]]
    places = np.cumsum([0, x.numel(), *widths, *widths])  # pixels, units by layer, switches by layer
    total = int(places[-1])

    def within(block: int, matrix: Any) -> Any:
        """A matrix on one block of variables, as one on all."""
        start, rows = int(places[block]), matrix.shape[0]
        return hstack([csr_array((rows, start)), csr_array(matrix), csr_array((rows, total - start - matrix.shape[1]))])

    low, high, rules = [(image - threat.eps).clip(0, 1)], [(image + threat.eps).clip(0, 1)], []
    switches_low, switches_high = [], []
    for number, end in enumerate(ends):
        least, most = (part[0].flatten().numpy() for part in end[:2])
        unit, switch = number + 1, number + 1 + len(ends)
        one, before = eye_array(widths[number]), within(number, weights[number])
        unbounded = np.full(widths[number], np.inf)
        rules += [
            LinearConstraint(within(unit, one) - before, biases[number], unbounded),
            LinearConstraint(
                within(unit, one) - before - within(switch, csr_array(np.diag(least))),
                -unbounded,
                biases[number] - least,
            ),
            LinearConstraint(within(unit, one) - within(switch, csr_array(np.diag(most.clip(0)))), -unbounded, 0.0),
        ]
        low.append(np.zeros(widths[number]))
        high.append(most.clip(0))
        switches_low.append((least >= 0).astype(float))
        switches_high.append((most > 0).astype(float))
    bounds = Bounds(np.concatenate(low + switches_low), np.concatenate(high + switches_high))
    whole = np.concatenate((np.zeros(int(places[1 + len(ends)])), np.ones(sum(widths))))
    last, shift = weights[-1], biases[-1]
    for rival in set(range(len(shift))) - {y}:
        wins = within(len(ends), (last[rival] - last[y])[None])
        limits = [*rules, LinearConstraint(wins, shift[y] - shift[rival] + SURE, np.inf)]
        found = milp(
            np.zeros(total), constraints=limits, integrality=whole, bounds=bounds, options={"time_limit": seconds}
        )
        if found.status not in (0, 2):
            raise TimeOut(f"class {rival}: {found.message}")
        if found.status == 0:
            point = found.x[: x.numel()].clip(low[0], high[0])  # the solver leaves them by 1e-7
            return torch.from_numpy(point).float().view_as(x)
    return None
