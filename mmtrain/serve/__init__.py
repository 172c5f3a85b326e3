"""A page to play with a model: find images by text, ask what is in an image and where."""

from mmtrain.serve.command import serve_command

__all__ = ["serve_command"]
