"""Shards made of whatever can be read: which sample goes where, under which name, as what bytes."""
