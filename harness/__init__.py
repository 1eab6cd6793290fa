"""The core of Gauntlet: attacks, referee, training, planning, running, records, trust. :mod:`gauntlet` is its public face."""
