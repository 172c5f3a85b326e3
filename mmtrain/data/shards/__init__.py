"""Tar shards: their headers, indexes and samples."""
