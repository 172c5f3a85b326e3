"""Dialogues about images: whole conversations to learn from, only the assistant's words trained."""
