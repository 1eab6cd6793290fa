"""Running the Python of users: what its imports mean, and what it sets in the process, undone."""
