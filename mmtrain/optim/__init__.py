"""Optimizers, learning-rate schedules, clipping and weight averaging."""
