"""Gu & Rigazio 2014, every table and figure: Deep Contractive Networks, and all that they tried before."""

from __future__ import annotations

from .study import STUDY

__all__ = ["STUDY"]
