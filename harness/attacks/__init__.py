"""Attacks of our own, and the two doors to ART and Foolbox (:mod:`.toolkits.art`, :mod:`.toolkits.foolbox`)."""
