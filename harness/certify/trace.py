"""Why a model cannot be bounded."""


class Uncovered(Exception):
    """There is no bound for the model; the message says why, or names the operator."""
