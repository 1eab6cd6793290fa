"""Victims whose weakness is known, and what every attack must achieve on them."""
