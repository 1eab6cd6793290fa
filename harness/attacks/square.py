"""Square Attack: random search with square windows, by scores alone (Andriushchenko et al. 2020; Croce & Hein 2021)."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from ..attack import Access, Attack
from ..errors import UserError
from ..threat import Norm, Threat, magnitude, per_sample
from ..victim import Victim
from .draws import Draws
from .line import CHUNK, is_fooled

MIN_SIDE = 3
ROUNDS = 4
TIES = True
_HALVINGS: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the window's area is halved."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    name: ClassVar[str] = "square"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    @property
    def access(self) -> Access:
        return "scores"

    @torch.no_grad()
    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        out, score = x.clone(), torch.full(y.shape, -torch.inf, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        draws = Draws(x)
        for restart in range(self.restarts):
            rows = self._search(victim, x, y, threat, rows, draws.fork(restart).of(rows), out, score)
        return out

    def _side(self, query: int, height: int, width: int, smallest: int) -> int:
        area = self.p_init * 0.5 ** bisect.bisect_left(_HALVINGS, query / self.queries) * height * width
        return min(max(round(area**0.5), smallest), height, width)

    def _search(self, victim, x, y, threat, rows, draws, out, score):
        _, _, height, width = x.shape
        x, y = x[rows], y[rows]
        best = _start(x, threat, draws)
        margin, hit = _margins(victim, best, y)
        for query in range(1, self.queries):
            if hit.any():
                out[rows[hit]] = best[hit]
                keep = ~hit
                rows, x, y, best, margin, draws = rows[keep], x[keep], y[keep], best[keep], margin[keep], draws.of(keep)
            if not len(rows):
                return rows
            side = self._side(query, height, width, 1 if threat.norm == "linf" else MIN_SIDE)
            trial = (
                _flip(x, best, threat.eps, side, draws)
                if threat.norm == "linf"
                else _move(x, best, threat, side, draws)
            )
            new, hit = _margins(victim, trial, y)
            better = ((new >= margin) if TIES else new > margin) | hit
            best, margin = torch.where(per_sample(better, x), trial, best), torch.where(better, new, margin)
        out[rows[hit]] = best[hit]
        keep = ~hit
        rows = rows[keep]
        up = margin[keep] > score[rows]
        out[rows[up]], score[rows[up]] = best[keep][up], margin[keep][up]
        return rows


def _margins(victim, x, y):
    parts = [victim(images) for images in torch.split(x, CHUNK)]
    logits = torch.cat(parts)
    label = y.unsqueeze(1)
    margin = logits.scatter(1, label, -torch.inf).amax(1) - logits.gather(1, label).squeeze(1)
    return margin, is_fooled(logits, y)


def _window(draws, side, height, width, channels):
    corner = draws.integers(height - side + 1) * width + draws.integers(width - side + 1)
    step = torch.arange(side, device=corner.device)
    inside = (step.unsqueeze(1) * width + step).flatten()
    return (corner.unsqueeze(1) + inside).unsqueeze(1).expand(-1, channels, -1)


def _start(x, threat, draws):
    _, c, h, w = x.shape
    if threat.norm == "linf":
        return (x + threat.eps * draws.signs(c, 1, w)).clamp(0, 1)
    tile = max(min(h, w) // 5, 3)
    row, column = torch.arange(h), torch.arange(w)
    signs = draws.signs(c, -(-h // tile), -(-w // tile))
    blob = _blob(tile, tile)
    return _fill(
        x, signs[:, :, row[:, None] // tile, column // tile] * blob[row[:, None] % tile, column % tile], threat
    )


def _flip(x, best, eps, side, draws):
    n, c, h, w = x.shape
    window = _window(draws, side, h, w, c)
    sign = draws.signs(c, 1)
    clean, old = x.flatten(2).gather(2, window), best.flatten(2).gather(2, window)
    new = (clean + eps * sign).clamp(0, 1)
    same = (new == old).flatten(1).all(1).view(-1, 1, 1)
    new = torch.where(same, (clean - eps * sign).clamp(0, 1), new)
    return best.flatten(2).scatter(2, window, new).view_as(x)


def _blob(height, width):
    row, column = torch.arange(height), torch.arange(width)
    ring = torch.maximum((row - height // 2).abs().unsqueeze(1), (column - width // 2).abs())
    n = max(height, width) // 2
    # sum_{k=ring}^{n} 1/(k+1)^2
    terms = 1.0 / torch.arange(1, n + 2) ** 2
    return terms.flip(0).cumsum(0).flip(0)[ring.clamp(max=n)]


def _pattern(side):
    if side == 1:
        return torch.ones(1, 1)
    half = side // 2
    return torch.cat([_blob(half, side), -_blob(side - half, side)])


def _move(x, best, threat, side, draws):
    n, c, h, w = x.shape
    power = 2 if threat.norm == "l2" else 1
    delta = (best - x).flatten(2)
    target, source = _window(draws, side, h, w, c), _window(draws, side, h, w, c)
    pattern = _pattern(side)
    turned = draws.signs(1, 1) > 0
    shape = torch.where(turned, pattern.flatten(), pattern.t().flatten()) * draws.signs(c, 1)
    old = delta.gather(2, target)

    def mass(d, dims):
        return d.abs().pow(power).sum(dims, keepdim=True)

    def unit(d):
        return d / mass(d, 2).pow(1 / power).clamp_min(1e-12)

    rest = delta.scatter(2, target, 0.0).scatter(2, source, 0.0)
    free = (threat.eps**power - mass(delta, (1, 2))).clamp_min(0) / c + mass(delta, 2) - mass(rest, 2)
    new = unit(unit(shape) + unit(old)) * free.clamp_min(0).pow(1 / power)
    return stretch(x, rest.scatter(2, target, new).view_as(x), threat.norm, threat.eps)


def stretch(x, delta, norm, length, rounds=4):
    length = per_sample(torch.as_tensor(length, device=x.device).expand(len(x)), x)
    for _ in range(1 if norm == "linf" else rounds):
        size = per_sample(magnitude(delta, norm), x)
        delta = (x + delta * (length / size.clamp_min(1e-12))).clamp(0, 1) - x
    return x + delta
