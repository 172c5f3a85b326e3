"""Pixels out of files, and what is done to them."""
