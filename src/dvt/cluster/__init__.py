"""Data-parallel jobs on several devices and machines: checks, launcher, diagnosis, and what the ranks exchange."""
