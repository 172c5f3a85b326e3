"""Data of every form, read by number through one order."""
