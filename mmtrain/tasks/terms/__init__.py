"""The terms of objectives: a file each, and a line here for those that a recipe names."""

from mmtrain.tasks.terms.distill import DistillConfig
from mmtrain.tasks.terms.matryoshka import MatryoshkaConfig

TermConfig = DistillConfig | MatryoshkaConfig
"""The kinds of [[loss.terms]]."""
