"""When each rank of a pipeline computes what: the share of idle time, and what waits meanwhile.

The interleaved schedules' orders are torch's own, asked of its schedules without any process group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from torch import nn
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from mmtrain.parallel.mesh import ScheduleName

Work = Literal["F", "B", "I", "W"]
"""Forward; backward; its two halves, the gradient of the input and that of the weights."""
_COST: dict[Work, int] = {"F": 1, "B": 2, "I": 1, "W": 1}
"""A backward costs two forwards."""


@dataclass(frozen=True)
class Action:
    """What a rank does at a time."""

    stage: int
    work: Work
    microbatch: int


Order = Mapping[int, Sequence[Action]]
"""What each rank does, in its order."""


def pipeline_order(schedule: ScheduleName, *, size: int, num_microbatches: int) -> Order:
    """The order of a step on each of `size` pipeline ranks."""
    kind = get_schedule_class(schedule)
    if not issubclass(kind, PipelineScheduleMulti):
        warmup = {r: size - r if schedule == "1F1B" else num_microbatches for r in range(size)}
        return {
            r: _one_stage(r, min(n, num_microbatches), num_microbatches) for r, n in warmup.items()
        }
    build: Any = kind
    stages = [
        SimpleNamespace(
            stage_index=index * size,
            num_stages=2 * size,
            group_size=size,
            group_rank=0,
            is_first=index == 0,
            is_last=False,
            has_backward=True,
            submod=nn.Identity(),
        )
        for index in range(2)
    ]
    orders = build(stages, num_microbatches, loss_fn=None).pipeline_order
    return {
        rank: [one for each in order for one in _actions(each)] for rank, order in orders.items()
    }


def _one_stage(rank: int, warmup: int, num_microbatches: int) -> list[Action]:
    """Some forwards, then a backward and a forward in turns, then the backwards that are left."""
    order = [Action(rank, "F", i) for i in range(warmup)]
    for i in range(num_microbatches):
        order.append(Action(rank, "B", i))
        if warmup + i < num_microbatches:
            order.append(Action(rank, "F", warmup + i))
    return order


def _actions(action: Any) -> list[Action]:
    """torch's action as ours; a pause is none."""
    if action is None or action.computation_type.value not in _COST:
        return []
    return [Action(action.stage_index, action.computation_type.value, action.microbatch_index)]


def idle_fraction(order: Order, *, passes: int) -> float:
    """The share of all ranks' time in a step that the pipeline's order leaves idle.

    Stages cost the same, a backward twice a forward, sending nothing. A pass without gradients
    that comes first runs the forwards in the same order.

    Args:
        order: of the pass with gradients.
        passes: 2 where one without them comes first.
    """
    forwards = {r: [a for a in actions if a.work == "F"] for r, actions in order.items()}
    parts = [forwards, order][-passes:]
    length = sum(map(_length, parts))
    work = sum(_COST[a.work] for part in parts for one in part.values() for a in one)
    return 1 - work / (length * len(order))


def _length(order: Order) -> int:
    """Time until the last rank is done, each action starting as soon as its inputs are there."""
    last = max(a.stage for actions in order.values() for a in actions)
    done: dict[tuple[str, int, int], int] = {}
    left = {rank: list(actions) for rank, actions in order.items()}
    clock = dict.fromkeys(order, 0)
    while any(left.values()):
        before = len(done)
        for rank, actions in left.items():
            while actions and (ready := _ready(actions[0], done, last)) is not None:
                action = actions.pop(0)
                clock[rank] = max(clock[rank], ready) + _COST[action.work]
                kind = "B" if action.work == "I" else action.work
                done[kind, action.stage, action.microbatch] = clock[rank]
        assert len(done) > before, "the order waits for itself"
    return max(clock.values())


def _ready(action: Action, done: Mapping[tuple[str, int, int], int], last: int) -> int | None:
    """When an action's inputs are there, None while that is not known."""
    stage, microbatch = action.stage, action.microbatch
    if action.work == "F":
        return 0 if stage == 0 else done.get(("F", stage - 1, microbatch))
    if action.work == "W" or stage == last:
        return done.get(("B" if action.work == "W" else "F", stage, microbatch))
    return done.get(("B", stage + 1, microbatch))
