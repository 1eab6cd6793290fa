"""Attacks of ART and Foolbox, each with what is known about it: norms, access, defects."""
