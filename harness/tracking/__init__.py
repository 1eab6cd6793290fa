"""MLflow: delivery of results to a tracking store, and what its runs show."""
