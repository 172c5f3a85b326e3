"""What dialogues side by side in one row save against rows that are padded to the longest.

Lengths are of two tables. easy-VQA: a dialogue is an image of its training set with all questions
and answers, by the demo's tokenizer: real, and of much the same length. long tail: log-normal
(median 60 tokens behind the image, sigma 1, at most 1,024 in all), drawn here, as instructions with
a few long answers have it. Both forms take turns on the same batches and weights; CPU time is the
process's. The gradients of both are compared. Run `python benchmarks/packing.py --out FILE`.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import describe_machine
from torch import Tensor

from mmtrain.data.dialogues.batches import DialogueBatch
from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.dialogues.dialogue import IMAGE, Turn
from mmtrain.data.dialogues.tokens import DialogueText
from mmtrain.data.questions.answers import every_question
from mmtrain.data.questions.source import open_questions
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.models import ClipConfig, TextConfig, VisionConfig
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.nn import TransformerConfig
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.tasks.dialogues import dialogue_objective
from mmtrain.train.step import build_schedule

LONGEST, PER_PIECE, VOCAB = 1024, 16, 8192
PIECES = Path("mmtrain/demo/vqa/sentencepiece.model")


def easy_vqa_lengths(count: int) -> list[int]:
    """Tokens of the first dialogues of the set, in its order."""
    config = TokenizerConfig(kind="sentencepiece", path=str(PIECES), clean="canonicalize")
    text = DialogueText(
        build_tokenizer(config),
        DialogueDataConfig(max_length=LONGEST),
        tokens_per_piece=PER_PIECE,
    )
    source, found = open_questions("easy_vqa:train"), []
    for sample in range(count):
        turns: list[Turn] = []
        for question in every_question(source, [sample]):
            turns += [Turn("user", question.question), Turn("assistant", question.answers[0])]
        first = turns[0]._replace(text=IMAGE + turns[0].text)
        found.append(len(text.encode([first, *turns[1:]], [1]).ids))
    return found


def long_tail_lengths(count: int) -> list[int]:
    """Drawn."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, generator=generator).mul(1.0).exp().mul(60)
    return [PER_PIECE + 2 + int(n) for n in drawn.clamp(max=LONGEST - PER_PIECE - 2)]


def make_batch(lengths: list[int], *, seed: int) -> DialogueBatch:
    """Dialogues of these lengths, an image before each; the last quarter of each is learnt."""
    generator = torch.Generator().manual_seed(seed)
    num, length_B = len(lengths), torch.tensor(lengths)
    learnt_B = length_B // 4
    place_T = torch.arange(max(lengths))
    image_BT = ((place_T >= 1) & (place_T < 1 + PER_PIECE)).expand(num, -1)
    return DialogueBatch(
        images_BCHW=torch.randint(0, 256, (num, 3, 64, 64), generator=generator).to(torch.uint8),
        num_pieces=(1,) * num,
        place_N2=torch.full((num, 2), -1),
        tokens_BT=torch.randint(1, VOCAB, (num, max(lengths)), generator=generator),
        length_B=length_B,
        image_BT=image_BT,
        trained_BT=(place_T >= length_B[:, None] - learnt_B[:, None])
        & (place_T < length_B[:, None]),
        num_trained=tuple(learnt_B.tolist()),
        position_B=torch.arange(num),
        valid_B=torch.ones(num, dtype=torch.bool),
        epoch=0,
        keys=tuple(map(str, range(num))),
    )


class Training:
    """What computes a step's gradients, side by side or not."""

    def __init__(self, *, packs: bool, batch_size: int) -> None:
        core = TransformerConfig(dim=192, num_layers=4, num_heads=3)
        decoder = TransformerConfig(
            dim=256, num_layers=6, num_heads=4, mask="causal", norm="rms", activation="swiglu"
        )
        clip = ClipConfig(
            vision=VisionConfig(image_size=64, patch_size=8, transformer=core),
            text=TextConfig(vocab_size=64, context_length=8, transformer=core),
            embed_dim=64,
        )
        generate = GenerateConfig(
            transformer=decoder, vocab_size=VOCAB, text_length=LONGEST, reads="dialogues"
        )
        config = VqaConfig(connector=ConnectorConfig(kind="pixel_shuffle"), generate=generate)
        self.model = Vqa(clip, config).init_weights(0)
        for parameter in self.model.vision.parameters():
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
        self.model.packs = packs
        layout = Layout(device=torch.device("cpu"), config=ParallelConfig())
        self.objective = dialogue_objective(self.model, layout=layout, seed=0)
        stage = self.model.stage()
        stage.set_criterion(self.objective.criterion)
        self.schedule = build_schedule([stage], layout, num_microbatches=1, batch_size=batch_size)

    def step(self, batch: DialogueBatch) -> float:
        """-> CPU seconds; gradients are left."""
        self.model.zero_grad()
        start = time.process_time()
        self.objective.step(self.schedule, batch)
        return time.process_time() - start

    def gradients(self) -> Tensor:
        """All of them in a row."""
        grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat(grads)


def compare(name: str, lengths: list[int], arguments: argparse.Namespace) -> str:
    """A row of the table."""
    size = arguments.batch_size
    batches = [lengths[at : at + size] for at in range(0, len(lengths) - size + 1, size)]
    slots = sum(size * max(rows) for rows in batches)
    padding = 1 - sum(map(sum, batches)) / slots
    forms = {packs: Training(packs=packs, batch_size=size) for packs in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    apart = 0.0
    for turn, rows in enumerate(batches[: arguments.repeats + 1]):
        batch = make_batch(rows, seed=turn)
        for packs, training in forms.items():
            taken = training.step(batch)
            if turn:  # the first loads the kernels
                seconds[packs].append(taken)
        padded, packed = (forms[packs].gradients() for packs in (False, True))
        apart = max(apart, float((padded - packed).norm() / padded.norm()))
    per_step = {packs: statistics.mean(taken) for packs, taken in seconds.items()}
    ratio = per_step[False] / per_step[True]
    return (
        f"| {name} | {min(lengths)} to {max(lengths)}, median {statistics.median(lengths):.0f} "
        f"| {padding:.1%} | 0% | {size / per_step[False]:.2f} | {size / per_step[True]:.2f} "
        f"| {ratio:.2f}x | {apart:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = arguments.batch_size * (arguments.repeats + 1)
    lines = [
        "# Dialogues side by side against padded rows, forward + backward",
        "",
        f"{describe_machine()}; one thread, fp32, batch {arguments.batch_size}, "
        f"{arguments.repeats} batches by turns, CPU time.",
        "",
        "| lengths | tokens | padding of rows | of one row | dialogues/s in rows | in one row | "
        "faster | gradients apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name, draw in (("easy-VQA", easy_vqa_lengths), ("long tail", long_tail_lengths)):
        lines.append(compare(name, draw(count), arguments))
        print(lines[-1], flush=True)
    if arguments.out is not None:
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
