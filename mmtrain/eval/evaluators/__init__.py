"""One evaluator a file: its section of a recipe, its options, how it is opened, tried and run."""
