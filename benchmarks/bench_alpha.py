"""Ways to get the gradients of all K classes, and what an alpha step costs; one thread, process CPU seconds.

    python benchmarks/bench_alpha.py [--models mlp-200-200,lenet] [--batches 1,16,64,256,500]

Untrained models on random 28x28 images: only the shapes matter here. The table stands behind the rule in
``harness.attacks.class_jacobian``.

Measured on one core, milliseconds per image for K = 10, against K backward passes over the whole batch and one pass
over K copies of each image:

================  =====  =====  =====  =====  =====  =====  =====  =====
images                1     16     64    500      1     16     64    500
model               MLP    MLP    MLP    MLP  LeNet  LeNet  LeNet  LeNet
================  =====  =====  =====  =====  =====  =====  =====  =====
K passes          1.123  0.126  0.071  0.055   5.74   2.51   2.40   2.75
K copies          0.457  0.107  0.092  0.102   4.46   3.55   4.58   6.38
batched, at once  0.353  0.069  0.056  0.052   4.28   2.51   2.41   3.34
batched, by 32    0.365  0.069  0.058  0.063   4.82   2.62   2.51   2.49
================  =====  =====  =====  =====  =====  =====  =====  =====
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from harness.attacks.alpha import Alpha
from harness.attacks.class_jacobian import chunk_size, class_gradients
from harness.attacks.fast_gradient import Gradient
from harness.models.registry import build_model
from harness.threat import Threat
from harness.victims.victim import Victim

Jacobian = Callable[[Victim, Tensor], Tensor]


def k_passes(victim: Victim, x: Tensor) -> Tensor:
    """One backward pass a class over the whole batch."""
    v = x.clone().requires_grad_(True)
    z = victim(v)
    rows = [torch.autograd.grad(z[:, k].sum(), v, retain_graph=True)[0] for k in range(z.shape[1])]
    return torch.stack(rows, 1)


def k_copies(victim: Victim, x: Tensor) -> Tensor:
    """One backward pass over K copies of each image."""
    classes = victim(x[:1]).shape[1]
    v = x.repeat_interleave(classes, 0).requires_grad_(True)
    (grad,) = torch.autograd.grad(victim(v), v, torch.eye(classes).repeat(len(x), 1))
    return grad.view(len(x), classes, *x.shape[1:])


def vectorised(victim: Victim, x: Tensor) -> Tensor:
    """One vectorised backward pass over the whole batch."""
    v = x.clone().requires_grad_(True)
    z = victim(v)
    basis = torch.eye(z.shape[1]).unsqueeze(1).expand(-1, len(x), -1)
    return torch.autograd.grad(z, v, basis, is_grads_batched=True)[0].transpose(0, 1)


def ours(victim: Victim, x: Tensor) -> Tensor:
    """The rule of the package: vectorised, in chunks."""
    return class_gradients(victim, x)[1]


WAYS: dict[str, Jacobian] = {
    "K backward passes": k_passes,
    "K copies": k_copies,
    "vectorised, at once": vectorised,
    "vectorised, in chunks (ours)": ours,
}


def cpu(work: Callable[[], object], least: float = 0.4) -> float:
    """CPU seconds per call: the better of two means over at least ``least`` seconds each."""
    work()
    best = float("inf")
    for _ in range(2):
        calls, start = 0, time.process_time()
        while time.process_time() - start < least:
            work()
            calls += 1
        best = min(best, (time.process_time() - start) / calls)
    return best


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp-200-200,lenet")
    parser.add_argument("--batches", default="1,16,64,256,500")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = [int(size) for size in args.batches.split(",")]
    for name in args.models.split(","):
        victim = Victim(build_model(name, (1, 28, 28), 10), classes=10, own=True)
        print(f"\n{name}: CPU ms an image, batches of {', '.join(map(str, batches))} (chunks of {chunk_size(victim)})")
        x = torch.rand(max(batches), 1, 28, 28)
        reference = k_passes(victim, x[:8])
        for label, way in WAYS.items():
            worst = float((way(victim, x[:8]) - reference).abs().max())
            times = [cpu(partial(way, victim, x[:size])) / size * 1e3 for size in batches]
            print(f"  {label:30}" + "".join(f"{value:9.3f}" for value in times) + f"   max difference {worst:.0e}")
        y = victim.predict(x)
        for attack, threat in (
            (Alpha(), Threat("l2", 1.5)),
            (Alpha(mode="minimal"), Threat("l2")),
            (Gradient(), Threat("l2", 1.5)),
        ):
            times = [cpu(partial(attack, victim, x[:size], y[:size], threat)) / size * 1e3 for size in batches]
            print(f"  {attack.label:30}" + "".join(f"{value:9.3f}" for value in times))


if __name__ == "__main__":
    main()
