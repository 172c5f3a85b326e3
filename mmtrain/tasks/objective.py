"""An objective: from a batch to gradients, over any schedule, for any list of terms.

The last stage makes of every row what the terms want: outputs that batch terms read, side by side,
then the columns of the row terms, [R, C]. What is known of their gradient before the forward, and
what only after all rows were seen, decides on the passes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.nn import HostLengths
from mmtrain.nn.regions import region
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.pipeline import PipelineSchedule
from mmtrain.tasks.logits import Logits
from mmtrain.tasks.source_loss import SourceLoss
from mmtrain.tasks.terms.term import BatchTerm, Outputs, Rows, RowTerm, Term, packed
from mmtrain.train.step import LocalSchedule

Schedule = LocalSchedule | PipelineSchedule
_NO_ANSWER = (
    "no question about the images of a batch ({key} is the first) has an answer to learn from; "
    "lower vqa.min_count or mend the answers"
)


class Objective:
    """The weighted sum of terms; draws a step's random choices, computes loss and gradients.

    Args:
        terms: at least one.
        layout: the mesh.
        rows: per-row tensors of a batch for every stage: ids, lengths, random choices.
        handed: outputs that batch terms read and their widths, in order.
        logits: the objective's own parameters.
        source_loss: what each source of a mixture loses; None without a mixture.
        images: of a batch, as the first stage takes them. None: as they are.
        nothing: what a user is told of a batch with nothing to learn from, `{key}` its first.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        layout: Layout,
        rows: Callable[[Any], Rows],
        handed: Mapping[str, int] | None = None,
        logits: Logits | None = None,
        source_loss: SourceLoss | None = None,
        images: Callable[[Any], Any] | None = None,
        nothing: str = _NO_ANSWER,
    ) -> None:
        self.layout, self.logits = layout, logits
        self._source_loss = source_loss
        self._task_rows, self._task_images, self._nothing = rows, images, nothing
        self.terms = tuple(terms)
        self.row_terms = [term for term in terms if isinstance(term, RowTerm)]
        self.batch_terms = [term for term in terms if isinstance(term, BatchTerm)]
        self._handed = dict(handed or {}) if self.batch_terms else {}
        self._names = _names(self.terms)
        self._count_N = torch.zeros(0)
        """What the row terms' sums are divided by."""
        self.nothing_learnt: Tensor | None = None
        """Whether the last batch had nothing to learn from; 0-dim bool, on the device."""
        self._value_N, self._sum_C = torch.zeros(len(self.batch_terms)), torch.zeros(0)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The objective's own parameters by name."""
        return {} if self.logits is None else self.logits.parameters()

    def clamp(self) -> None:
        """Bring its parameters back into their range after an update."""
        if self.logits is not None:
            self.logits.clamp()

    def teachers(self) -> dict[str, tuple[str, str]]:
        """Models that terms learn from, by their key in the recipe: path and fingerprint."""
        return {key: told for term in self.terms for key, told in term.teachers().items()}

    def rows(self, batch: Any) -> Rows:
        """Per-row tensors of a batch for every stage, those that the terms add among them."""
        rows = self._task_rows(batch)
        if self.layout.size("pp") == 1:  # else all texts are of one length
            lengths = batch.text_length if batch.host_length is None else batch.host_length
            rows |= cast(Rows, {"host_lengths": HostLengths(lengths)})
        for term in self.terms:
            rows |= term.rows(batch)
        return rows

    def images(self, batch: Any) -> Any:
        """A batch's images for the first stage."""
        return batch.images_BCHW if self._task_images is None else self._task_images(batch)

    def criterion(self, outputs: Outputs, rows: Rows) -> Tensor:
        """What the last stage hands to the schedule of each row, [R, C]."""
        handed = [outputs[name] for name in self._handed]
        return packed(handed + [term.columns(outputs, rows) for term in self.row_terms])

    def step(self, schedule: Schedule, batch: Any, *, loss_scale: Tensor | float = 1.0) -> Tensor:
        """Loss and gradients of one global batch; the gradients, times `loss_scale`, are added to
        `.grad`.

        Returns:
            The loss, detached and without the scale, the same on every rank. Where the batch has
            nothing to learn from, `nothing_learnt` says so and the gradients are 0.
        """
        known_C = self._known_gradient(batch)
        images, rows = self.images(batch), self.rows(batch)
        if not self.batch_terms:
            gradient_RC = (known_C * loss_scale).expand(_num_rows(rows), -1)
            out_RC, losses = schedule.step(images, rows, gradient_RC), None
        elif schedule.single_pass:
            assert isinstance(schedule, LocalSchedule)
            out_RC = schedule.forward(images, rows)
            total, losses = self._losses(schedule, out_RC, batch, rows)
            if self.row_terms:
                total = total + (out_RC * known_C.to(out_RC.dtype)).sum()
            if total.requires_grad:
                _backward(total * loss_scale)
        elif isinstance(schedule, LocalSchedule) and self._sums_over_images:
            (term,) = self.batch_terms
            factor = loss_scale * term.weight
            loss, out_RC = schedule.step_in_parts(
                images,
                rows,
                lambda text_BE: term.begin(
                    text_BE, batch, factor=factor, frozen=schedule.frozen_outputs
                ),
            )
            losses = [loss]
        else:
            out_RC, losses = self._two_passes(schedule, batch, rows, known_C, loss_scale)
        if self._source_loss is not None:
            self._source_loss.add(batch)
        return self._agree(out_RC, losses, known_C)

    @torch.no_grad()
    def row_parts(self, schedule: LocalSchedule, batch: Any) -> Tensor:
        """Each row's part of the loss with the weights as they are, [R] in fp64; together they are
        the loss, without the terms that have no rows of their own (distillation, slices). On one
        process."""
        rows = self.rows(batch)
        out_RC, known_C = schedule.eval(self.images(batch), rows), self._known_gradient(batch)
        place = sum(self._handed.values())
        parts_R = torch.zeros(out_RC.size(0), dtype=torch.float64, device=out_RC.device)
        for term in self.batch_terms:
            found_R = term.row_parts(self._outputs(out_RC), batch)
            parts_R += 0.0 if found_R is None else term.weight * found_R
        for term in self.row_terms:
            parts_R += out_RC[:, place].double() * known_C[place]
            place += term.num_columns
        return parts_R

    def num_passes(self, schedule: Schedule) -> int:
        """Forwards of a step: two where a loss over all rows is computed before any backward."""
        at_once = isinstance(schedule, LocalSchedule) and self._sums_over_images
        return 1 if not self.batch_terms or schedule.single_pass or at_once else 2

    @property
    def _sums_over_images(self) -> bool:
        """Whether one pass does that has all texts and takes the images in parts."""
        return len(self.terms) == 1 and self.batch_terms[0].sums_over_images

    def _outputs(self, out_RC: Tensor) -> Outputs:
        """What batch terms read, out of what the last stage handed to the schedule."""
        parts = out_RC[:, : sum(self._handed.values())].split([*self._handed.values()], dim=1)
        return dict(zip(self._handed, parts, strict=True))

    def _losses(
        self, schedule: Schedule, out_RC: Tensor, batch: Any, rows: Rows
    ) -> tuple[Tensor, list[Tensor]]:
        """The weighted sum of the batch terms, and each without its weight."""
        # Packed beside others, a frozen output would seem to want a gradient.
        outputs = {
            name: output.detach() if name in schedule.frozen_outputs else output
            for name, output in self._outputs(out_RC).items()
        }
        with region("loss"):
            losses = [term.loss(outputs, batch, rows) for term in self.batch_terms]
        weighted = (term.weight * x for term, x in zip(self.batch_terms, losses, strict=True))
        return sum(weighted, start=losses[0].new_zeros(())), losses

    def _two_passes(
        self,
        schedule: Schedule,
        batch: Any,
        rows: Rows,
        known_C: Tensor,
        loss_scale: Tensor | float,
    ) -> tuple[Tensor | None, list[Tensor] | None]:
        """All outputs without gradients, their gradient, and that into the weights. Gao et al. 2021
        (GradCache), arXiv:2101.06983, section 3."""
        losses, gradient_RC = None, None
        out_RC = schedule.eval(self.images(batch), rows)
        if out_RC is not None:
            out_RC = out_RC.detach().requires_grad_()
            total, losses = self._losses(schedule, out_RC, batch, rows)
            if total.requires_grad:
                _backward(total * loss_scale)
            gradient_RC = out_RC.grad
            if self.row_terms and gradient_RC is not None:
                gradient_RC = gradient_RC + (known_C * loss_scale).to(out_RC.dtype)
        if self._handed.keys() - schedule.frozen_outputs:
            known = self._of_frozen_towers(schedule, out_RC, num_rows=_num_rows(rows))
            rows = rows | known
            schedule.step(self.images(batch), rows, gradient_RC)
        return out_RC, losses

    def _of_frozen_towers(
        self, schedule: Schedule, out_RC: Tensor | None, *, num_rows: int
    ) -> Rows:
        """What the second pass need not compute again: outputs of which nothing trains. A stage
        that makes no outputs is only told which, by one without any numbers."""
        if out_RC is None:
            nothing = torch.empty(num_rows, 0, device=self.layout.device)
            return {f"{name}_BE": nothing for name in schedule.frozen_outputs}
        known = self._outputs(out_RC.detach())
        return {f"{name}_BE": known[name] for name in schedule.frozen_outputs}

    def _known_gradient(self, batch: Any) -> Tensor:
        """What is known before the forward: the gradient [C] of each row's columns, in fp64."""
        num_columns = sum(self._handed.values()) + sum(term.num_columns for term in self.row_terms)
        known_C = torch.zeros(num_columns, dtype=torch.float64, device=self.layout.device)
        self._count_N = self._count(batch)
        # DDP and FSDP average over the data-parallel ranks; each has its share of the sum.
        share, place = self.layout.size("dp"), sum(self._handed.values())
        for term, count in zip(self.row_terms, self._count_N.unbind(), strict=True):
            known_C[place] = torch.where(count > 0, term.weight * share / count, 0.0)
            place += term.num_columns
        return known_C

    def _count(self, batch: Any) -> Tensor:
        """What the row terms' sums are divided by, over the global batch: [row terms], in fp64."""
        if not self.row_terms:
            return torch.zeros(0)
        found_N = torch.stack([term.count(batch) for term in self.row_terms])
        if (group := self.layout.group("dp")) is not None:
            dist.all_reduce(found_N, group=group)
        if not self.batch_terms:
            self.nothing_learnt = found_N[0] == 0
        return found_N.double()

    def nothing_told(self, keys: Sequence[str]) -> str:
        """What a user is told of a batch with nothing to learn from, and what mends it."""
        return self._nothing.format(key=keys[0])

    @torch.no_grad()
    def _agree(self, out_RC: Tensor | None, losses: list[Tensor] | None, known_C: Tensor) -> Tensor:
        """The objective's value on every rank; what the terms say of the step is kept. All that
        only a rank, or the last stage, knows goes in one collective of each: the logits' gradients
        too, which are averaged over dp."""
        handed, share = sum(self._handed.values()), self.layout.size("dp")
        like = {"dtype": torch.float64, "device": self.layout.device}  # one dtype on every stage
        sum_C = torch.zeros(known_C.numel() - handed, **like)
        value_N = torch.zeros(len(self.batch_terms), **like)
        if out_RC is not None and self.row_terms:
            sum_C = out_RC[:, handed:].double().sum(0)
        if losses is not None:
            value_N = torch.stack([loss.double() for loss in losses])
        parts = [value_N, sum_C]
        if self.logits is not None:
            gradient_N = self.logits.gradients()
            parts.append(gradient_N / share if share > 1 else gradient_N)
        value_N, sum_C, *gradients = self._sum_of_ranks(parts)
        for gradient_N in gradients:
            assert self.logits is not None
            self.logits.take_gradients(gradient_N)
        self._value_N, self._sum_C = value_N, sum_C
        weight_N = [term.weight for term in self.batch_terms]
        total = (sum_C * known_C[handed:]).sum() / share
        for value, weight in zip(value_N, weight_N, strict=True):
            total = total + weight * value
        return total

    def _sum_of_ranks(self, parts: list[Tensor]) -> list[Tensor]:
        """Each summed over dp, as the last stage has them. Collective."""
        dp, pp = self.layout.group("dp"), self.layout.group("pp")
        if dp is None and pp is None:
            return parts
        told = torch.cat([part.double() for part in parts])
        if dp is not None:
            dist.all_reduce(told, group=dp)
        if pp is not None:
            source = dist.get_global_rank(pp, self.layout.last_stage_rank)
            dist.broadcast(told, source, group=pp)
        return [*told.split([part.numel() for part in parts])]

    def settle(self) -> None:
        """Before `figures`: bring together what only each rank knows. Collective."""
        if self._source_loss is not None:
            self._source_loss.settle()

    def figures(self) -> dict[str, Any]:
        """What a log line says beside the loss. Of the last step what each of several terms came
        to, what the terms have to tell, the logits' multiplier; of the steps since the last
        `settle` but one what each source of a mixture lost. Waits for the device."""
        found: dict[str, Any] = {}
        values: dict[Term, float] = dict(zip(self.batch_terms, self._value_N.tolist(), strict=True))
        places = torch.tensor([0, *(term.num_columns for term in self.row_terms)]).cumsum(0)
        sums, counts = self._sum_C.tolist(), self._count_N.tolist()
        for term, start, count in reversed(
            [*zip(self.row_terms, places.tolist(), counts, strict=False)]
        ):
            mine = sums[start : start + term.num_columns]
            values[term] = mine[0] / max(count, 1)
            found |= term.figures(mine, count)
        if len(self.terms) > 1:
            found |= {f"loss/{self._names[term]}": values[term] for term in self.terms}
        if self.logits is not None:
            found["logit_scale"] = self.logits.multiplier().item()
        if self._source_loss is not None:
            found["source_loss"] = self._source_loss.figures()
        return found


def _backward(total: Tensor) -> None:
    with region("backward"):
        total.backward()


def _num_rows(rows: Rows) -> int:
    return rows["length_Q" if "length_Q" in rows else "length_B"].size(0)


def _names(terms: Sequence[Term]) -> dict[Term, str]:
    """Each term's kind; with a number where several are of one kind."""
    names: dict[Term, str] = {}
    for term in terms:
        before = sum(other.kind == term.kind for other in names)
        names[term] = f"{term.kind}_{before + 1}" if before else term.kind
    return names
