"""The losses as their formulas say, with all logits at once, and the inputs they are tried on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmtrain.losses import (
    SiglipByParts,
    SiglipGradients,
    affinity_loss,
    clip_loss,
    siglip_loss,
)

LABELS: dict[str, Callable[[int], Tensor | None]] = {
    "none": lambda num: None,
    "unique": lambda num: torch.full((num,), -1),
    "all same": lambda num: torch.full((num,), 7),
    "mixed": lambda num: torch.arange(num) * 5 % 7 % 4 - 1,
}
TEACHER_DIM = 7
TEACHER_SCALE = 9.5
# Of 13 rows.
PARTS = {
    "one": [(0, 13)],
    "two": [(0, 7), (7, 13)],
    "three uneven": [(0, 1), (1, 9), (9, 13)],
    "eight, last ones first": [(11, 13), (10, 11), (0, 2), (2, 4), (4, 6), (6, 8), (8, 9), (9, 10)],
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of a loss, without its features."""

    kind: str
    positives: str = "attract"
    labels: Tensor | None = None
    valid: Tensor | None = None
    first: int = 0
    """The first row's place in the global batch, by which its teacher knows it."""

    def rows(self, rows: slice) -> "Case":
        """The same call as the rank sees it that holds these rows."""
        labels = None if self.labels is None else self.labels[rows]
        valid = None if self.valid is None else self.valid[rows]
        return replace(self, labels=labels, valid=valid, first=self.first + rows.start)

    def teacher(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Image and text features of a teacher, in fp32."""
        return teacher_features(self.first, num_rows)

    def naive(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """The formula over the real rows alone."""
        if self.kind == "affinity":
            return self._naive_affinity(image, text, scale)
        labels = torch.full((len(image),), -1) if self.labels is None else self.labels
        if self.valid is not None:
            image, text, labels = image[self.valid], text[self.valid], labels[self.valid]
        own = torch.eye(len(image), dtype=torch.bool)
        same = (labels[:, None] == labels) & (labels >= 0) | own
        formula = {"clip": naive_clip, "siglip": naive_siglip}[self.kind]
        match = same if self.positives == "attract" else own
        return formula(scale * image @ text.T, bias, match=match, counts=match | ~same)

    def _naive_affinity(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        """Divergence of rows and of columns from the teacher's."""
        teacher_image, teacher_text = (x.double() for x in self.teacher(len(image)))
        valid = slice(None) if self.valid is None else self.valid
        logits = scale * image[valid] @ text[valid].T
        wanted = TEACHER_SCALE * teacher_image[valid] @ teacher_text[valid].T
        losses = [
            F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean")
            for q, p in ((logits, wanted), (logits.T, wanted.T))
        ]
        return torch.stack(losses).mean()

    def ours(self, image: Tensor, text: Tensor, scale, bias, group=None, **rest) -> Tensor:
        """The loss under test; only siglip takes a bias, and affinity takes no labels."""
        if self.kind == "affinity":
            teacher_image, teacher_text = self.teacher(len(image))
            return affinity_loss(
                image,
                text,
                teacher_image_BE=teacher_image,
                teacher_text_BE=teacher_text,
                logit_scale=scale,
                teacher_logit_scale=TEACHER_SCALE,
                group=group,
                valid_B=self.valid,
                **rest,
            )
        shared = {"group": group, "labels_B": self.labels, "valid_B": self.valid, **rest}
        if self.kind == "clip":
            return clip_loss(image, text, logit_scale=scale, positives=self.positives, **shared)
        return siglip_loss(
            image, text, logit_scale=scale, logit_bias=bias, positives=self.positives, **shared
        )


@cache
def teacher_features(first: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """Unit-norm and in fp32; a row's are the same whatever rows are beside it."""
    rows = torch.arange(first, first + num_rows, dtype=torch.float64)
    angle = (rows[:, None] + 1) * torch.arange(1, 2 * TEACHER_DIM + 1).sqrt()
    image, text = F.normalize(angle.sin().unflatten(1, (2, TEACHER_DIM)), dim=-1).unbind(1)
    return image.float(), text.float()


def naive_clip(logits: Tensor, bias: Tensor, *, match: Tensor, counts: Tensor) -> Tensor:
    """Cross-entropy of rows and of columns with targets uniform over the matches."""
    target = match.to(logits.dtype) / match.sum(1, keepdim=True)
    losses = []
    for x in (logits, logits.T):
        log_softmax = x.masked_fill(~counts, -torch.inf).log_softmax(1)
        losses.append(-(target * log_softmax.masked_fill(~counts, 0)).sum() / len(x))
    return torch.stack(losses).mean()


def naive_siglip(logits: Tensor, bias: Tensor, *, match: Tensor, counts: Tensor) -> Tensor:
    """-sum logsigmoid(z x) / B."""
    sign = torch.where(match, 1.0, -1.0).to(logits.dtype)
    return -(F.logsigmoid(sign * (logits + bias)) * counts).sum() / len(logits)


def inputs(num_rows: int, *, dtype: torch.dtype = torch.float64, scale: float = 14.3, dim: int = 5):
    """Unit-norm image and text features, a scale and a bias, all wanting gradients."""
    generator = torch.Generator().manual_seed(num_rows)
    features = torch.randn(2, num_rows, dim, generator=generator, dtype=torch.float64)
    image, text = F.normalize(features, dim=-1)
    values = (image, text, torch.tensor(scale), torch.tensor(-2.5))
    return tuple(x.to(dtype).requires_grad_() for x in values)


def gradients(loss: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """d(1.5 loss)/d(leaves); zeros where the loss does not depend on one."""
    return list(torch.autograd.grad(1.5 * loss, leaves, materialize_grads=True))


def assert_near(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    """Norm of the difference, relative to what is wanted.

    Values that vanish by cancellation are compared with the size of what cancels: about 1 for a
    loss (0-dim), 0.1 for gradients.
    """
    error = (got.double() - want).norm() / want.norm().clamp(min=0.1 if want.ndim else 1.0)
    assert error <= tolerance, f"{what} is off by {error:.1e}"


def assert_same_result(case: Case, leaves: tuple[Tensor, ...], tolerance: float) -> None:
    """Value and all gradients equal the formula's in fp64."""
    exact = tuple(x.detach().double().requires_grad_() for x in leaves)
    want, got = case.naive(*exact), case.ours(*leaves)
    assert_near(got, want, tolerance, "loss")
    pairs = zip(gradients(got, leaves), gradients(want, exact), strict=True)
    for name, (ours, naive) in zip(("image", "text", "scale", "bias"), pairs, strict=True):
        assert_near(ours, naive, tolerance, f"gradient of {name}")


def by_parts(
    case: Case, image, text, scale, bias, *, parts, group=None
) -> tuple[Tensor, SiglipGradients]:
    """Gradients of the images, put together, and all others."""
    sums = SiglipByParts(
        text,
        logit_scale=scale,
        logit_bias=bias,
        group=group,
        labels_B=case.labels,
        positives=case.positives,
        valid_B=case.valid,
    )
    image_grad = torch.full_like(image, torch.nan)
    for start, stop in parts:
        image_grad[start:stop] = sums.add(image[start:stop], slice(start, stop))
    return image_grad, sums.finish()


def assert_same_by_parts(case: Case, leaves, tolerance: float, *, parts, group=None) -> None:
    """Loss and gradients equal those that autograd finds of the whole."""
    want = case.ours(*leaves, group=group)
    image_grad, got = by_parts(case, *(x.detach() for x in leaves), parts=parts, group=group)
    assert_near(got.loss, want, tolerance, f"loss of {case}")
    grads = (image_grad, got.text_BE, got.logit_scale, got.logit_bias)
    wanted = torch.autograd.grad(want, leaves)
    for name, ours, whole in zip(("image", "text", "scale", "bias"), grads, wanted, strict=True):
        assert_near(ours, whole, tolerance, f"gradient of {name} of {case}")


class Sizes(TorchDispatchMode):
    """Records the elements of every tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.largest = max([self.largest, *(x.untyped_storage().nbytes() for x in tensors)])
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return out
