"""Answers to questions about images, judged."""
