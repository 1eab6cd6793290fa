"""The core: attacks, referee, training, planning, running, records, trust. Its public face is :mod:`gauntlet`."""
