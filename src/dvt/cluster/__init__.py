"""Data-parallel training on several devices and machines: checks, launcher, diagnosis, cost model."""
