"""Checkpoints on disk: sealed folders, tensors, saves in the background, inspection."""
