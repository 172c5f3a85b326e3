"""TOML and overrides into frozen dataclasses, their help, the paths in them."""
