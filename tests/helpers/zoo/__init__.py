"""Models that hide how weak they are, and honest ones: what the trust grade is measured on.

Everything is small enough for the embedded digits and trained in seconds, the same in every process. Half of either
kind is *held out*: what thresholds are chosen on is the other half (:func:`.split.half`).
"""
