"""Where bytes are, and which files nobody put there as data."""
