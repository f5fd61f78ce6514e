"""Data-parallel jobs: checks, launcher, diagnosis, and what the ranks exchange."""
