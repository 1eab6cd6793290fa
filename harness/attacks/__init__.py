"""Attacks of our own, and the two doors to ART and Foolbox (:mod:`.art`, :mod:`.foolbox`)."""
