"""Lyu et al. 2015 on MNIST: gradient regularization, and why Gaussian noise rarely makes an adversarial.

All figures and tables but III and V, which are on CIFAR-10: :mod:`suites.lyu2015_cifar10`. That study takes from here
what the two share.
"""

from __future__ import annotations

from .claims import below
from .error_tables import errors, noise_table
from .measures import NOISE, noisy, tested
from .networks import regularized
from .study import STUDY

__all__ = ["NOISE", "STUDY", "below", "errors", "noise_table", "noisy", "regularized", "tested"]
