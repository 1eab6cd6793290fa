"""Models, cells, suites and plans as declarations; pure, no I/O."""
