"""The tables of a report: rankings, models against attacks, costs, failures, trust, curves."""
