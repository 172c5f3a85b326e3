"""Pages on this machine: to play with a model (find images by text, ask what is in an image and
where), and to watch runs."""

from mmtrain.serve.command import serve_command
from mmtrain.serve.watch import watch_command

__all__ = ["serve_command", "watch_command"]
