"""What Lyu et al. 2015 claim of MNIST, in clauses that can be checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from harness.studies.study import Claim, Clause, Derived, Measure, Quantity

from .measures import NOISE, added, foretold, line, mean_distance, noisy, shaken, tested
from .networks import CONV, HALVES, LAMBDAS, MAXOUT, SIGMOID, regularized, softmax

if TYPE_CHECKING:
    from harness.studies.study import Relation


def below(text: str, left: Quantity, right: Quantity) -> Clause:
    """One error is smaller than another."""
    return Clause(text=text, left=left, relation="<", right=right, unit="%")


ORDERS: Final = {"0.1": ("1e-2", "1", "1e-4"), "0.3": ("1", "1e-2", "1e-4")}
"""Lambdas by their error under noise, smallest first, in tables VII and VIII alike."""


def _consistent() -> tuple[Clause, ...]:
    kinds: tuple[tuple[str, Callable[[str, float], Measure]], ...] = (("actual", shaken), ("foretold", foretold))
    rises = [
        below(
            f"{words}, {softmax(weight)}: 0.1 against 0.3",
            quantity(softmax(weight), 0.1),
            quantity(softmax(weight), 0.3),
        )
        for words, quantity in kinds
        for weight in LAMBDAS
    ]
    orders = [
        below(
            f"{words}, {std}: lambda = {better} against {worse}",
            quantity(softmax(better), float(std)),
            quantity(softmax(worse), float(std)),
        )
        for words, quantity in kinds
        for std, order in ORDERS.items()
        for better, worse in itertools.pairwise(order)
    ]
    return (*rises, *orders)


THREE_PERCENT: Final[tuple[tuple[str, Relation, float], ...]] = (("no less", ">=", 0.025), ("no more", "<=", 0.035))


def _excess(model: str) -> Derived:
    """Error that eq. 33 foretells without noise, less the one there is: the normal model's share below 0."""
    return Derived(operation="difference", of=(foretold(model, 0.0), line("clean_error", model)))


CLAIMS: Final = (
    Claim(
        name="p-2-is-best",
        text="Standard gradient regularization beats no regularization and p = inf in test error, on the permutation "
        "invariant network.",
        where="section IV.A, table I",
        clauses=(
            below("against none", tested(regularized(MAXOUT)), tested(MAXOUT)),
            below("against p = inf, by halves", tested(regularized(MAXOUT)), tested(HALVES)),
            below(
                "against p = inf, perturbed images alone",
                tested(regularized(MAXOUT)),
                tested(regularized(MAXOUT, "p = inf, 0.25")),
            ),
        ),
    ),
    Claim(
        name="p-2-is-best-with-convolutions",
        text="The same on the convolutional network.",
        where="section IV.A, table II",
        clauses=(
            below("against none", tested(regularized(CONV)), tested(CONV)),
            below("against p = inf", tested(regularized(CONV)), tested(regularized(CONV, "p = inf, 0.1"))),
        ),
    ),
    Claim(
        name="sigma-of-p-inf",
        text="On the convolutional network, p = inf does better with sigma = 0.1 than with the dense network's 0.25.",
        where="section IV.A",
        clauses=(
            below(
                "0.1 against 0.25",
                tested(regularized(CONV, "p = inf, 0.1")),
                tested(regularized(CONV, "p = inf, 0.25")),
            ),
        ),
    ),
    Claim(
        name="sigmoid-beats-maxout",
        text="With the regularization an old-fashioned sigmoid network errs less than maxout with dropout (and, which "
        "the paper does not print, less than without it).",
        where="section IV.A, table I",
        clauses=(
            below("against maxout with dropout", tested(regularized(SIGMOID)), tested(MAXOUT)),
            below("against none", tested(regularized(SIGMOID)), tested(SIGMOID)),
        ),
    ),
    Claim(
        name="robust-to-noise",
        text="Gradient regularization lowers the error under Gaussian noise.",
        where="section IV.C, table IV",
        clauses=tuple(
            below(f"{net}, {std}", noisy(regularized(net), float(std)), noisy(net, float(std)))
            for net in (MAXOUT, CONV)
            for std in NOISE
        ),
    ),
    Claim(
        name="convolutions-suffer",
        text="Under noise of 0.3 the convolutional network errs more than the dense one.",
        where="section IV.C, table IV",
        clauses=(
            below("plain", noisy(MAXOUT, 0.3), noisy(CONV, 0.3)),
            below("regularized", noisy(regularized(MAXOUT), 0.3), noisy(regularized(CONV), 0.3)),
        ),
    ),
    Claim(
        name="weights-and-distance",
        text="A larger lambda makes the minimum perturbation larger.",
        where="section V.A, table VI",
        clauses=tuple(
            Clause(
                text=f"{larger} against {smaller}",
                left=mean_distance(softmax(larger)),
                relation=">",
                right=mean_distance(softmax(smaller)),
            )
            for smaller, larger in (("1e-4", "1e-2"), ("1e-2", "1"))
        ),
    ),
    Claim(
        name="foretold-fits",
        text="What eq. 33 foretells changes with the noise as what is measured does, fairly consistently. What that "
        "is, is ours: either rises with the noise at every lambda, and either puts the lambdas in print's order.",
        where="section V.A, tables VII and VIII",
        clauses=_consistent(),
    ),
    Claim(
        name="three-percent-without-noise",
        text="Even without noise the normal model of distances gives an error of roughly 3 %; as rounded.",
        where="section V.A",
        clauses=tuple(
            Clause(
                text=f"{softmax(weight)}, {words}",
                left=_excess(softmax(weight)),
                relation=relation,
                right=bound,
                unit="%",
            )
            for weight in LAMBDAS
            for words, relation, bound in THREE_PERCENT
        ),
    ),
    Claim(
        name="rare-by-nature",
        text="Noise that is hard to see adds at most a tenth of a point of error: adversarials rarely occur by nature.",
        where="section V.B, table IX",
        clauses=tuple(
            Clause(text=softmax(weight), left=added(softmax(weight)), relation="<=", right=0.001, unit="%")
            for weight in LAMBDAS
        ),
    ),
)
