"""What lies on disk: checkpoints, results, plans, boards made of them, homes merged and compared."""
