"""Batched L-BFGS against SciPy's L-BFGS-B, image by image, on the same objective; one thread, process CPU seconds.

    python benchmarks/bench_lbfgs.py [--data-root DATA] [--images 200] [--c 1.0] [--models mlp-200-200,lenet]

Trains each model on MNIST first (``--cache DIR`` keeps the weights); without a data folder (``--data-root``, or
``GAUNTLET_DATA``) it says so and measures nothing. Every ratio comes from within this one run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from defenses.standard import Standard
from harness.attacks._targeted import choose_target
from harness.attacks.lbfgs import LBFGS
from harness.datasets.registry import Dataset, load_dataset
from harness.determinism import seed_everything
from harness.models.registry import build_model
from harness.threat import Threat
from harness.victims.victim import Victim

EPOCHS = {"lenet": 2}
SCIPY: dict[str, dict[str, float]] = {
    "SciPy, its defaults (ftol 2.2e-9)": {},
    "SciPy, ftol 1e-5": {"ftol": 1e-5},
    "SciPy, ftol 1e-4": {"ftol": 1e-4},
}
OURS = {"ours, tol 1e-4 (default)": 1e-4, "ours, tol 1e-5": 1e-5, "ours, tol 1e-3": 1e-3}


def trained(name: str, data: Dataset, cache: Path | None) -> nn.Module:
    """A model trained for a few epochs, from the cache where it lies there."""
    path = cache / f"bench-{name}.pt" if cache else None
    if path and path.exists():
        model: nn.Module = build_model(name, data.info.shape, len(data.info.classes))
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        seed_everything(0)
        model = Standard(epochs=EPOCHS.get(name, 8)).fit(name, data).model
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
    return model.eval().requires_grad_(False)


def cpu(work: Callable[[], object], repeats: int = 1) -> float:
    """Least process CPU seconds of several runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def scipy_attack(
    model: nn.Module, x: Tensor, target: Tensor, c: float, options: dict[str, float]
) -> tuple[Tensor, int]:
    """The attack as a loop over images: adversarial images and the number of evaluations."""
    out, evaluations = [], 0
    for image, label in zip(x, target, strict=True):
        anchor, goal, shape = image.flatten().double().numpy(), label[None], (1, *image.shape)

        def value(r: np.ndarray, anchor=anchor, goal=goal, shape=shape):
            v = torch.from_numpy((anchor + r).astype(np.float32)).view(shape).requires_grad_(True)
            loss = F.cross_entropy(model(v), goal)
            (grad,) = torch.autograd.grad(loss, v)
            norm = np.sqrt(r @ r)
            slope = grad.numpy().ravel().astype(np.float64)
            return loss.item() + c * norm, slope + (c / norm) * r if norm else slope

        bounds = np.stack((-anchor, 1 - anchor), 1)
        found = minimize(value, np.zeros_like(anchor), method="L-BFGS-B", jac=True, bounds=bounds, options=options)
        evaluations += found.nfev
        out.append(torch.from_numpy((anchor + found.x).astype(np.float32)).view(image.shape))
    return torch.stack(out).clamp(0, 1), evaluations


def replay(model: nn.Module, x: Tensor, target: Tensor, sizes: list[int]) -> None:
    """The bare passes of batches of the given sizes."""
    for size in sizes:
        v = x[:size].clone().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(v), target[:size], reduction="sum"), v)


def compare(name: str, data: Dataset, n: int, c: float, cache: Path | None) -> None:
    model = trained(name, data, cache)
    victim = Victim(model, own=True)
    test = data.test
    right = (victim.predict(test.x[: 2 * n]) == test.y[: 2 * n]).nonzero().squeeze(1)[:n]
    x, y = test.x[right], test.y[right]
    target = choose_target(victim(x), y, "second")
    accuracy = float((victim.predict(test.x) == test.y).float().mean())
    print(f"\n{name} (accuracy {accuracy:.2%}), {len(x)} images, c = {c:g}, target = second most likely class")
    print(f"  {'':36}{'evals/img':>10}{'CPU ms/img':>12}{'objective':>11}{'L2':>8}{'success':>9}")

    def show(label: str, x_adv: Tensor, evaluations: float, seconds: float) -> float:
        distance = (x_adv - x).flatten(1).norm(dim=1)
        objective = float((F.cross_entropy(victim(x_adv), target, reduction="none") + c * distance).mean())
        success = float((victim.predict(x_adv) != y).float().mean())
        print(
            f"  {label:36}{evaluations / len(x):10.1f}{seconds / len(x) * 1e3:12.2f}{objective:11.5f}"
            f"{float(distance.mean()):8.3f}{success:9.3f}"
        )
        return objective

    theirs: dict[str, tuple[float, float]] = {}
    for label, options in SCIPY.items():
        start = time.process_time()
        x_adv, evaluations = scipy_attack(model, x, target, c, options)
        seconds = time.process_time() - start
        theirs[label] = (show(label, x_adv, evaluations, seconds), seconds)
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, _args, out: sizes.append(len(out)))
    mine: dict[str, tuple[float, float]] = {}
    recorded: dict[str, list[int]] = {}
    for label, tol in OURS.items():
        attack = LBFGS(c=c, tol=tol)
        sizes.clear()
        x_adv = attack(victim, x, y, Threat("l2"))
        recorded[label] = list(sizes)
        seconds = cpu(partial(attack, victim, x, y, Threat("l2")), 3)
        mine[label] = (show(label, x_adv, sum(recorded[label]), seconds), seconds)
    hook.remove()

    for label, (objective, seconds) in mine.items():
        for other, (reference, slow) in theirs.items():
            print(
                f"  {label} vs {other}: {slow / seconds:.1f} times as fast, objective {objective / reference - 1:+.2%}"
            )
    for label, own in recorded.items():
        bare = cpu(partial(replay, model, x, target, own), 3)
        best = min(cpu(partial(replay, model, x, target, [size] * 10), 3) / (10 * size) for size in (50, 100, 200))
        seconds = mine[label][1]
        print(
            f"  {label}: {seconds / bare:.2f} times its bare passes at its own batch sizes, "
            f"{seconds / (best * sum(own)):.2f} times at the best of 50, 100, 200"
        )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("GAUNTLET_DATA") or None)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--c", type=float, default=1.0)
    parser.add_argument("--models", default="mlp-200-200,lenet")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if args.data_root is None:
        print("bench_lbfgs: skipped, it needs MNIST: give --data-root DATA or set GAUNTLET_DATA")
        return
    torch.set_num_threads(1)
    threadpool_limits(1)  # SciPy's vector arithmetic would wake a BLAS thread a core, which counts as CPU time
    data = load_dataset("mnist", root=args.data_root)
    for name in args.models.split(","):
        compare(name, data, args.images, args.c, args.cache)


if __name__ == "__main__":
    main()
