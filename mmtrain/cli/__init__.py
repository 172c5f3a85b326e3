"""The command line: one file per group of commands, holding what they take and what they run."""

from mmtrain.cli.program import build_parser, main

__all__ = ["build_parser", "main"]
