"""What a certificate costs beside the battery that it stands next to; one thread, CPU seconds.

    python benchmarks/bench_certify.py [--models mlp-100-100,lenet] [--images 20] [--epochs 10]

Networks trained with PGD on the embedded digits, at the middle eps of the suite ``linf``, without its transfer. Taking
a model apart is once for a model; the ratio is of seconds an image within this run.
"""

from __future__ import annotations

import argparse

import torch
from turns import cpu

from defenses.pgd import Pgd
from harness import determinism
from harness.attacks.transfer import Transfer
from harness.certify import prepare
from harness.certify.bounds import Certificate, Network
from harness.datasets.registry import load_dataset
from harness.judging.referee import judge
from harness.threat import Threat
from harness.victims.victim import Victim
from suites import suites


def one(name: str, images: int, epochs: int) -> None:
    data = load_dataset("digits")
    determinism.seed_everything(0)
    model = Pgd(epochs=epochs).fit(name, data).model.eval().requires_grad_(False)
    _, (x, y) = data.test_sample(images)
    victim = Victim(model, classes=10)
    eps = suites()["linf"].grid(data.info)["linf"]
    threat = Threat("linf", eps[len(eps) // 2])
    left = victim.predict(x) == y
    battery = 0.0
    for attack in suites()["linf"].attacks["linf"]:
        if isinstance(attack, Transfer):
            continue
        attack.warm_up()
        made = []
        battery += cpu(lambda attack=attack, made=made: made.append(attack(victim, x.clone(), y, threat)))
        left &= ~judge(victim, x, y, made[0], threat).adversarial
    networks: list[Network] = []
    prepare(model, x)  # what is imported for it
    apart = cpu(lambda: networks.append(prepare(model, x)))
    proofs: list[Certificate] = []
    proof = cpu(lambda: proofs.append(networks[0].bounds(x, y, threat)))
    certified = proofs[0].certified
    assert not (certified & ~left).any(), "a certified image was broken"
    share = f"{certified.double().mean():.0%} certified, {left.double().mean():.0%} left by the battery"
    print(
        f"  {name:16}{threat.eps:6g}{apart:12.2f}{proof / images:14.4f}{battery / images:14.3f}"
        f"{proof / battery:12.4f}   {share}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp-100-100,lenet")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"  {'':16}{'eps':>6}{'apart s':>12}{'proof s/img':>14}{'battery s/img':>14}{'ratio':>12}")
    for name in args.models.split(","):
        one(name, args.images, args.epochs)


if __name__ == "__main__":
    main()
