"""Models of users: how they are named, loaded from Python, torch.export and MLflow, and called."""
