"""The builder: a recipe into a run."""
