"""Which slices of a model a rank of a pipeline holds; the models cut themselves."""

from mmtrain.errors import UsageError
from mmtrain.models.model import Stage
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.pipeline import interleaves, num_stages, stage_indices


def slice_stages(whole: Stage, layout: Layout) -> list[Stage]:
    """The slices of a model that this rank holds.

    Raises:
        UsageError: there are more stages than layers.
    """
    check_slices(whole, layout)
    total = num_stages(layout)
    return [whole.slice(index, total) for index in stage_indices(layout)]


def check_slices(whole: Stage, layout: Layout) -> None:
    """Refuse more stages than layers.

    Raises:
        UsageError: naming what is cut and what works.
    """
    total, cuts = num_stages(layout), whole.cuts()
    if total > cuts.most:
        each = f" with two stages a rank ({layout.config.schedule})" if interleaves(layout) else ""
        raise UsageError(
            f"parallel.pp = {layout.size('pp')}{each} cuts {cuts.what} into {total} stages; use "
            f"parallel.pp <= {cuts.most * layout.size('pp') // total}"
        )
