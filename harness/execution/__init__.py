"""Running a plan: jobs, workers, processes, and which task comes next."""
