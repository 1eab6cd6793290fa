"""Numbers for others: bundles published and verified, and images of others that lower a number."""
