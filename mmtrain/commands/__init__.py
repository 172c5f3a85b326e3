"""What the commands beside `train` and `demo` do."""
