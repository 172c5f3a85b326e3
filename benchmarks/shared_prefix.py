"""Several questions of one image: read behind an image that was read once, against reading the
image anew with each.

Under the masks `causal` and `block` the decoder's keys and values of an image are the same whatever
is asked (models/answer_cache.py), so all its questions share them. Random weights of a small
decoder and of SmolLM2-135M's shape; an image's tokens and the questions of 12 tokens are random
vectors; a row is read up to the first token of its answer. Both forms take turns; processor time,
one thread. The logits of both are compared, and the tokens counted that the decoder reads. VQAv2
asks 5.4 questions an image, GQA 12.

    python benchmarks/shared_prefix.py --out benchmarks/results/shared_prefix_cpu.md
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import describe_machine, tell_table
from torch import Tensor

from mmtrain.models import VisionConfig
from mmtrain.models.answer_cache import read_behind, read_images, read_together
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.generate_answers import AnswerGenerator, GenerateConfig
from mmtrain.nn import TransformerConfig

SHAPES = {
    "small, 5 M": {"dim": 256, "num_layers": 6, "num_heads": 8, "num_kv_heads": 2, "ff_dim": 688},
    "smollm2, 135 M": {
        "dim": 576,
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "ff_dim": 1536,
    },
}
QUESTION = 12
"""Tokens of each."""
ROOM = 8
"""Tokens of an answer that the cache has room for."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the table."""

    shape: str
    patches: int
    """Tokens of an image."""
    questions: int
    """Of one image."""


def build(job: Job) -> AnswerGenerator:
    """A head whose decoder reads an image of so many tokens."""
    side = round(job.patches**0.5)
    blocks = TransformerConfig(
        **SHAPES[job.shape], activation="swiglu", norm="rms", qkv_bias=False, mask="causal"
    )
    config = GenerateConfig(transformer=blocks, vocab_size=4096, text_length=QUESTION + ROOM)
    tower = TransformerConfig(dim=64, num_layers=1, num_heads=1)
    vision = VisionConfig(image_size=16 * side, patch_size=16, transformer=tower)
    head = AnswerGenerator(config, vision=vision, connector=ConnectorConfig(), front_door=None)
    head.init_weights(torch.Generator().manual_seed(0))
    return head.eval()


def forms(head: AnswerGenerator, job: Job) -> dict[str, Callable[[], Tensor]]:
    """Both ways to the logits of the first token of each question's answer."""
    width = head.decoder.config.transformer.dim
    image_1PD = torch.randn(1, job.patches, width)
    text_QTD = torch.randn(job.questions, QUESTION, width)
    length_Q = torch.full((job.questions,), QUESTION)

    def shared() -> Tensor:
        images = [(read_images(head, image_1PD), 0)] * job.questions
        return read_behind(head, images, text_QTD, length_Q, max_new_tokens=ROOM).logits_BV

    def anew() -> Tensor:
        image_QPD = image_1PD.expand(job.questions, -1, -1)
        return read_together(head, image_QPD, text_QTD, length_Q, max_new_tokens=ROOM).logits_BV

    return {"shared": shared, "anew": anew}


def rows(jobs: list[Job], turns: int) -> Iterator[str]:
    """A line for each job."""
    for job in jobs:
        head = build(job)
        both = forms(head, job)
        shared_QV, anew_QV = (run() for run in both.values())
        farthest = (shared_QV - anew_QV).abs().max() / anew_QV.abs().max()
        taken: dict[str, list[float]] = {name: [] for name in both}
        for _ in range(turns):
            for name, run in both.items():
                start = time.process_time()
                run()
                taken[name].append(time.process_time() - start)
        ratios = sorted(b / a for a, b in zip(taken["shared"], taken["anew"], strict=True))
        questions = job.questions * QUESTION
        yield (
            f"| {job.shape} | {job.patches} | {job.questions} "
            f"| {job.patches + questions} | {job.questions * job.patches + questions} "
            f"| {1e3 * statistics.median(taken['shared']):.0f} ms "
            f"| {1e3 * statistics.median(taken['anew']):.0f} ms "
            f"| **{statistics.median(ratios):.2f}x** ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {farthest:.0e} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--patches", type=int, nargs="+", default=[64, 196], help="squares")
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 5, 12], help="of an image")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [
        Job(shape=shape, patches=patches, questions=questions)
        for shape in args.shapes
        for patches in args.patches
        for questions in args.questions
    ]
    table = [
        "# Questions of one image, which is read once",
        "",
        f"{describe_machine()}; fp32, processor time, one thread, medians of {args.turns} turns, "
        "in brackets the ratio's range over them; `python benchmarks/shared_prefix.py`.",
        "",
        "| decoder | tokens of the image | questions | tokens read, shared | anew | shared | anew "
        "| anew / shared | logits differ by, of the largest |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows(jobs, args.turns),
    ]
    tell_table(table, args.out)


if __name__ == "__main__":
    main()
