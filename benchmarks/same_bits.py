"""Are the files of an evaluation the same to the byte however it is run, and what does that cost?

Two models of 135 M random weights, one that answers and one of two towers, evaluate 66 drawn
pictures (a forward is of 64, so that two ranks have work) at each batch size, with and without
workers, on one rank and on two: all files of a cell are laid against those of the first. With
--fast they are told apart, which shows that the comparison can see something; its processor time by
turns is the price.

    python benchmarks/same_bits.py --out benchmarks/results/same_bits_cpu.md
"""

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from machine import describe_machine, tell_table
from PIL import Image

from mmtrain.cli import main as mmtrain
from mmtrain.commands import evaluate, vqa
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.questions.answers import AnswerVocabulary
from mmtrain.data.questions.question import Question
from mmtrain.data.shards.write import write_shard
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.eval import encode
from mmtrain.eval.questions import answerer
from mmtrain.loading import save_model
from mmtrain.loading.vqa import VqaModel, save_vqa
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.models.classify_answers import ClassifyConfig
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.nn import TransformerConfig

SIZES, WORKERS, RANKS = (1, 2, 7, 32), (0, 2), (1, 2)
ANSWERING, TOWERS = ("generate", "classify"), ("zero-shot", "retrieval", "knn", "linear-probe")
NUM_PICTURES = 66
COLOURS = ("red", "green", "blue", "grey")
_CONTEXT, _SIDE, _ANSWER_LENGTH = 16, 32, 3


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One command."""

    kind: str
    ranks: int = 1
    batch: int
    workers: int = 0
    fast: bool = False
    turn: int = 0

    def out(self, place: Path) -> Path:
        """The folder of its files."""
        names = (self.kind, self.ranks, self.batch, self.workers, self.fast, self.turn)
        return place / "-".join(map(str, names))

    def words(self, place: Path, precision: str) -> list[str]:
        """What is typed."""
        data, classes = str(place / "set.tar"), str(place / "classes.txt")
        labels = ["--classes", classes, "--label-key", "cls"]
        said = ["--predictions", str(self.out(place) / "said.json")]
        own = {
            "generate": ["vqa", "--data", data, "--head", "generate", *said],
            "classify": ["vqa", "--data", data, "--head", "classify", *said],
            "zero-shot": ["zero-shot", "--data", data, *labels],
            "retrieval": ["retrieval", "--data", data],
        }
        probe = [self.kind, "--train", data, "--test", data, *labels]
        model = str(place / ("answering" if self.kind in ANSWERING else "towers"))
        more = ["--batch-size", str(self.batch), "--workers", str(self.workers)]
        fast = ["--fast"] if self.fast else []
        out = ["--out", str(self.out(place) / "result.json"), "--quiet", "--precision", precision]
        return ["eval", *own.get(self.kind, probe), "--model", model, *more, *fast, *out]


def write_set(place: Path) -> None:
    """Pictures of one colour and noise, each with a class, a caption and a question."""
    rng, samples = np.random.default_rng(0), []
    asked = ("which colour?", "is it red or is it blue, or what else may it be?", "how many dots?")
    for number in range(NUM_PICTURES):
        pixels = rng.integers(0, 80, (_SIDE, _SIDE + number % 5, 3), dtype=np.uint8)
        pixels[..., number % 3] += 150
        image = io.BytesIO()
        Image.fromarray(pixels).save(image, "PNG")
        colour = COLOURS[number % 4]
        question = Question(question_id=number, question=asked[number % 3], answers=(colour,))
        files = {
            "png": image.getvalue(),
            "cls": str(number % 4).encode(),
            "txt": f"a {colour} picture, number {number}".encode(),
            "json": json.dumps({"questions": [question.to_json()]}).encode(),
        }
        samples.append((f"{number:05d}", files))
    write_shard(place / "set.tar", samples)
    (place / "classes.txt").write_text("\n".join(COLOURS) + "\n")


def _towers(tokenizer: Tokenizer, image: TransformerConfig, text: TransformerConfig) -> ClipConfig:
    vision = VisionConfig(transformer=image, image_size=_SIDE, patch_size=16)
    words = TextConfig(
        transformer=text,
        vocab_size=tokenizer.vocab_size,
        context_length=_CONTEXT,
        end_token_id=tokenizer.eot_id,
    )
    return ClipConfig(vision=vision, text=words, embed_dim=512)


def write_answering(place: Path) -> int:
    """The model that answers, with random weights, the same ones every time -> its parameters."""
    tokenizer = build_tokenizer(TokenizerConfig(context_length=_CONTEXT))
    core = functools.partial(TransformerConfig, mask="causal")
    small = TransformerConfig(dim=192, num_layers=2, num_heads=3)
    decoder = core(
        dim=576, num_layers=20, num_heads=9, num_kv_heads=3, ff_dim=1536, norm="rms",
        activation="swiglu",
    )  # fmt: skip
    generate = GenerateConfig(
        transformer=decoder,
        vocab_size=tokenizer.vocab_size,
        text_length=_CONTEXT + _ANSWER_LENGTH,
        tied_head=False,  # tied and random it says again what it read last: the end
    )
    classify = ClassifyConfig(fusion=small, num_answers=len(COLOURS))
    clip = _towers(tokenizer, small, core(dim=192, num_layers=2, num_heads=3))
    answering = Vqa(clip, VqaConfig(generate=generate, classify=classify)).init_weights(0)
    drawn = Clip(clip).init_weights(0)
    answering.vision.load_state_dict(drawn.vision.state_dict())
    assert answering.text is not None
    answering.text.load_state_dict(drawn.text.state_dict())
    saved = VqaModel(
        model=answering.eval(),
        tokenizer=tokenizer,
        preprocess=PreprocessConfig(image_size=_SIDE),
        vocabulary=AnswerVocabulary(answers=COLOURS),
        answer_length=_ANSWER_LENGTH,
        decoder_files={},
    )
    save_vqa(place / "answering", saved)
    return _count(answering)


def write_towers(place: Path) -> int:
    """The same of the model of two towers."""
    tokenizer = build_tokenizer(TokenizerConfig(context_length=_CONTEXT))
    image = TransformerConfig(dim=768, num_layers=12, num_heads=12)
    text = TransformerConfig(dim=512, num_layers=8, num_heads=8, mask="causal")
    clip = Clip(_towers(tokenizer, image, text)).init_weights(0)
    preprocess = PreprocessConfig(image_size=_SIDE)
    save_model(place / "towers", model=clip.eval(), tokenizer=tokenizer, preprocess=preprocess)
    return _count(clip)


def _count(model: torch.nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())


def run_cells(rank: int, world: int, place: Path, precision: str, cells: list[Cell]) -> None:
    """All commands of a number of ranks on one of them; rank 0 notes their processor time."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    if world > 1:
        store = f"file://{place / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    for module in (evaluate, vqa):  # one set of ranks runs all commands
        module.leave_ranks = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    for module, name in ((vqa, "load_vqa"), (answerer, "fused_vqa")):
        setattr(module, name, functools.lru_cache(1)(getattr(module, name)))
    for module, name in ((evaluate, "load"), (encode, "fused_clip")):
        setattr(module, name, functools.lru_cache(1)(getattr(module, name)))
    for cell in cells:
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert mmtrain(cell.words(place, precision)) == 0
        if rank == 0:
            took = time.process_time() - began
            print(cell, f"{took:.2f} s", flush=True)
            (cell.out(place) / "took").write_text(str(took))
    os._exit(0)  # gloo's threads may abort an interpreter that is taken apart


def digest(folder: Path) -> str:
    """Of all files that a command wrote, and their names."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "took":
            found.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return found.hexdigest()


def row(kind: str, place: Path, cells: list[Cell]) -> str:
    """Of the table."""
    own = [cell for cell in cells if cell.kind == kind]
    exact = [digest(cell.out(place)) for cell in own if not cell.fast]
    fast = [digest(cell.out(place)) for cell in own if cell.fast and not cell.turn]
    took = {
        (cell.fast, cell.turn): float((cell.out(place) / "took").read_text())
        for cell in own
        if cell.batch == SIZES[-1] and cell.ranks == 1 and not cell.workers
    }
    ratios = [took[False, turn] / took[True, turn] for was_fast, turn in took if was_fast]
    price = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    same = f"{exact.count(exact[0])} of {len(exact)}"
    return f"| {kind} | {same} | {fast.count(fast[0])} of {len(fast)} | {price} |"


def grid(kinds: Sequence[str], turns: int) -> list[Cell]:
    """Every way to run each kind, then the price's turns."""
    ways = itertools.product(kinds, RANKS, SIZES, WORKERS)
    cells = [Cell(kind=k, ranks=r, batch=b, workers=w) for k, r, b, w in ways]
    cells += [Cell(kind=kind, batch=size, fast=True) for kind in kinds for size in (1, 32)]
    more = itertools.product(kinds, range(1, turns), (False, True))
    return cells + [Cell(kind=k, batch=SIZES[-1], turn=t, fast=fast) for k, t, fast in more]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = (*ANSWERING, *TOWERS)
    parser.add_argument("--kinds", nargs="+", choices=every, default=every, help="which (all)")
    parser.add_argument("--precision", default="bf16", help="of the products (bf16)")
    parser.add_argument("--turns", type=int, default=3, help="of the price (3)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the table there (.md)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_set(place)
        kinds = [[kind for kind in some if kind in args.kinds] for some in (ANSWERING, TOWERS)]
        makes = (write_answering, write_towers)
        counts = [make(place) for make, some in zip(makes, kinds, strict=True) if some]
        millions = " and ".join(f"{num / 1e6:.0f} M" for num in counts)
        cells = [cell for some in kinds for cell in grid(some, args.turns)]
        for world in RANKS:
            own = [cell for cell in cells if cell.ranks == world]
            torch.multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage]
                run_cells, args=(world, place, args.precision, own), nprocs=world
            )
        rows = [row(kind, place, cells) for kind in itertools.chain(*kinds)]
    ways = f"batch sizes {SIZES}, workers {WORKERS}, ranks {RANKS}"
    lines = [
        "# The same bytes however it is run",
        "",
        f"`python benchmarks/same_bits.py`, {describe_machine()}. {millions} random weights, "
        f"{args.precision}, {NUM_PICTURES} pictures with one question each. Same: cells of {ways} "
        "of which all files are those of the first, to the byte; with --fast by batch sizes (1, "
        "32), on one rank. Price: processor time without --fast over with it, "
        f"{args.turns} turns; a model is read and its products are fused once, so it is that of "
        "the evaluation.",
        "",
        "| evaluation | same | same with --fast | price |",
        "|---|---|---|---|",
        *rows,
    ]
    tell_table(lines, args.out)


if __name__ == "__main__":
    main()
