"""Parallelism, applied to the models from outside by torch's own engine."""
