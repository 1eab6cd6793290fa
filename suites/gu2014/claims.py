"""What Gu & Rigazio 2014 claim, in clauses that can be checked."""

from __future__ import annotations

from typing import Final

from harness.studies.study import Claim, Clause, Derived, Measure

from .measures import adv, blurred, frequent, tested
from .networks import DCN_GN, GN, KERNELS, NET_6, NETS, PLACES, SIGMAS, blur, dae, dcn, noise, stack


def _least(*of: Measure) -> Derived:
    return Derived(operation="least", of=of)


def _recovered(behind: str, net: str) -> Derived:
    """The share of a network's adversarial errors that a defense before it is without."""
    return Derived(operation="recovered", of=(adv("error", behind, net), adv("error", net)))


CLAIMS: Final = (
    Claim(
        name="always-fooled",
        text="Every plain network errs on more than 99 % of its adversarials, at a distortion of 0.05 to 0.15.",
        where="section 2.2, table 1",
        clauses=tuple(
            clause
            for net in NETS
            for clause in (
                Clause(text=f"{net}: error", left=adv("error", net), relation=">=", right=0.99, unit="%"),
                Clause(text=f"{net}: distortion", left=adv("distortion", net), relation=">=", right=0.05),
                Clause(text=f"{net}: distortion, upper end", left=adv("distortion", net), relation="<=", right=0.15),
            )
        ),
    ),
    Claim(
        name="blur-over-noise",
        text="Blur recovers more adversarials than noise: the better of two kernels against the better of L1 and L* "
        "with sigma = 0.1.",
        where="section 3.1, figure 1, table 2",
        clauses=tuple(
            Clause(
                text=net,
                left=_least(*(blurred("error", net, kernel) for kernel in KERNELS)),
                relation="<",
                right=_least(*(adv("error", noise(place, 0.1, net), net) for place in PLACES)),
                unit="%",
            )
            for net in NETS
        ),
    ),
    Claim(
        name="convolution-recovers",
        text="Convolution helps to recover: on the ConvNet a blur of 11 recovers more than half of the adversarials "
        "at a clean error 3 points higher, noise of 0.1 at every layer more than 35 %; both more than on N100-100-10.",
        where="section 3.1, page 5",
        clauses=(
            *(
                clause
                for name, behind, share in (
                    ("blur 11", blur(11, "ConvNet"), 0.5),
                    ("noise L* 0.1", noise("L*", 0.1, "ConvNet"), 0.35),
                )
                for clause in (
                    Clause(
                        text=f"{name} on the ConvNet: recovered",
                        left=_recovered(behind, "ConvNet"),
                        relation=">",
                        right=share,
                        unit="%",
                    ),
                    Clause(
                        text=f"{name} on the ConvNet: points of clean error",
                        left=Derived(
                            operation="difference",
                            of=(adv("clean_error", behind, "ConvNet"), adv("clean_error", "ConvNet")),
                        ),
                        relation="<=",
                        right=0.035,
                        unit="%",
                    ),
                )
            ),
            Clause(
                text="blur 11: ConvNet against N100-100-10",
                left=_recovered(blur(11, "ConvNet"), "ConvNet"),
                relation=">",
                right=_recovered(blur(11, "N100-100-10"), "N100-100-10"),
                unit="%",
            ),
            Clause(
                text="noise L* 0.1: ConvNet against N100-100-10",
                left=_recovered(noise("L*", 0.1, "ConvNet"), "ConvNet"),
                relation=">",
                right=_recovered(noise("L*", 0.1, "N100-100-10"), "N100-100-10"),
                unit="%",
            ),
        ),
    ),
    Claim(
        name="never-clean",
        text="Neither noise nor blur brings the error on adversarials down to that on clean images.",
        where="section 3.1, page 5",
        clauses=tuple(
            Clause(
                text=net,
                left=_least(
                    *(blurred("error", net, kernel) for kernel in KERNELS),
                    *(adv("error", noise(place, sigma, net), net) for place in PLACES for sigma in SIGMAS),
                ),
                relation=">",
                right=adv("clean_error", net),
                unit="%",
            )
            for net in NETS
        ),
    ),
    Claim(
        name="noise-of-high-frequency",
        text="Adversarial noise mostly resides in the high-frequency domain: more than half of its energy lies above "
        "the frequency that a blur of 11 halves, and more than of the images' own.",
        where="section 3.4",
        clauses=tuple(
            clause
            for net in NETS
            for clause in (
                Clause(text=f"{net}: most of it", left=frequent(net, 11), relation=">", right=0.5, unit="%"),
                Clause(
                    text=f"{net}: against the images",
                    left=frequent(net, 11),
                    relation=">",
                    right=frequent(net, 11, of="image"),
                    unit="%",
                ),
            )
        ),
    ),
    Claim(
        name="dae-almost-as-good",
        text="A denoising autoencoder with sigma = 0.1 recovers almost as many adversarials as the network's own "
        "autoencoder: at most 10 points fewer, as in print.",
        where="section 3.3, page 7, tables 3 and 4",
        clauses=tuple(
            Clause(
                text=net,
                left=Derived(
                    operation="difference",
                    of=(adv("error", dae(0.1, net), net), adv("error", stack(net, net), net)),
                ),
                relation="<=",
                right=0.1,
                unit="%",
            )
            for net in NETS
        ),
    ),
    Claim(
        name="dae-stack-is-weaker",
        text="Stacked with the network, the denoising autoencoder suffers the same deficiency: attacked end to end, "
        "both fall to a smaller distortion than the bare network.",
        where="section 3.3, page 7",
        clauses=(
            Clause(
                text="DAE(0.1) + N100-100-10",
                left=adv("distortion", dae(0.1, "N100-100-10")),
                relation="<",
                right=adv("distortion", "N100-100-10"),
            ),
        ),
    ),
    Claim(
        name="autoencoder-recovers",
        text="Every autoencoder recovers at least 90 % of adversarial errors, whatever network they were made on.",
        where="section 3.2, table 3",
        clauses=tuple(
            Clause(
                text=f"{net}'s adversarials, autoencoder of {trained_on}",
                left=_recovered(stack(trained_on, net), net),
                relation=">=",
                right=0.9,
                unit="%",
            )
            for net in NETS
            for trained_on in NETS
        ),
    ),
    Claim(
        name="stack-is-weaker",
        text="Attacked end to end, autoencoder and network fall to a smaller distortion than the bare network.",
        where="section 3.2, table 3",
        clauses=tuple(
            Clause(text=net, left=adv("distortion", stack(net, net)), relation="<", right=adv("distortion", net))
            for net in NETS
        ),
    ),
    Claim(
        name="dcn-is-stronger",
        text="A contractive network falls to a larger distortion than the plain one, at a clean error at most 1 point "
        "higher.",
        where="section 4.3, table 5",
        clauses=tuple(
            clause
            for net in NETS
            for clause in (
                Clause(
                    text=f"{net}: distortion",
                    left=adv("distortion", dcn(net)),
                    relation=">",
                    right=adv("distortion", net),
                ),
                Clause(
                    text=f"{net}: clean error",
                    left=Derived(operation="difference", of=(tested(dcn(net)), tested(net))),
                    relation="<=",
                    right=0.01,
                    unit="%",
                ),
            )
        ),
    ),
    Claim(
        name="dcn-over-noise",
        text="The penalty gives a larger distortion than training with noise, and noise with the penalty a larger one "
        "than the penalty alone.",
        where="section 4.3, table 6",
        clauses=(
            *(
                Clause(
                    text=f"DCN against {name}",
                    left=adv("distortion", dcn(NET_6)),
                    relation=">",
                    right=adv("distortion", name),
                )
                for name in GN
            ),
            Clause(
                text="DCN+GN against DCN",
                left=adv("distortion", DCN_GN),
                relation=">",
                right=adv("distortion", dcn(NET_6)),
            ),
        ),
    ),
)
