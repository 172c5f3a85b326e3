"""Features of images and texts, ours against open_clip's, alternating in one run.

Both have the same weights; `encode_image` gets uint8 pixels here and normalised ones there, as the
two pipelines give them, `encode_text` captions of natural length (from the data in the package)
padded to 77. bf16 is autocast on both sides; theirs in bf16 throughout is a third way. Ours is what
`mmtrain eval` and `mmtrain embed` run: towers fused once, before the clock starts, and the time
that takes is told. One thread, processor time; the ratio round by round.

    python benchmarks/encode.py --out benchmarks/results/encode_cpu.md
    python benchmarks/encode.py --models ViT-B-16 --batch-size 16
"""

import argparse
import itertools
import logging
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from machine import describe_machine
from torch import Tensor

from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.demo import debug_pairs
from mmtrain.interop.open_clip import from_open_clip
from mmtrain.models import Clip
from mmtrain.models.fused import fused_clip
from mmtrain.nn import unit_norm

Encode = Callable[[], Tensor]
_MEAN, _STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def build_models(name: str) -> tuple[Clip, torch.nn.Module]:
    """The same random weights as ours and as theirs."""
    logging.disable(logging.WARNING)  # that the weights are random, which is meant
    torch.manual_seed(0)
    theirs = open_clip.create_model(name, precision="fp32", output_dict=False).eval()
    model_cfg = open_clip.get_model_config(name)
    assert model_cfg is not None, f"open_clip knows no model {name}"
    config, tensors = from_open_clip(model_cfg, theirs.state_dict())
    ours = Clip(config)
    ours.load_state_dict(tensors)
    return ours.eval(), theirs


def captions(number: int) -> list[str]:
    """Real ones, repeated as often as it takes."""
    with tarfile.open(debug_pairs().train) as tar:
        files = [tar.extractfile(info) for info in tar if info.name.endswith(".txt")]
        texts = [file.read().decode() for file in files if file is not None]
    return list(itertools.islice(itertools.cycle(texts), number))


def ways(name: str, batch_size: int, precision: str) -> dict[str, dict[str, Encode]]:
    """By what is encoded: ours, and theirs in their ways."""
    ours, theirs = build_models(name)
    dtype = torch.bfloat16 if precision == "bf16" else None
    began = time.process_time()
    fused = fused_clip(ours, dtype=dtype)
    print(f"{name}, {precision}: fusing takes {time.process_time() - began:.2f} s", flush=True)
    size = ours.config.vision.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 3, size, size), generator=generator).byte()
    images = images.contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(each)[:, None, None] for each in (_MEAN, _STD))
    pixels = ((images / 255 - mean) / std).contiguous()
    tokens = build_tokenizer(TokenizerConfig())(captions(batch_size))

    def in_format(encode: Callable[[Tensor], Tensor], x: Tensor) -> Encode:
        def run() -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
                return unit_norm(encode(x))

        return run

    found = {
        "encode_image": {
            "ours": in_format(fused.encode_image, images),
            "open_clip": in_format(theirs.encode_image, pixels),
        },
        "encode_text": {
            "ours": in_format(fused.encode_text, tokens),
            "open_clip": in_format(theirs.encode_text, tokens),
        },
    }
    if dtype is not None:
        pure = build_models(name)[1].to(dtype)
        way = "open_clip in bf16 throughout"
        found["encode_image"][way] = plain(pure.encode_image, pixels.to(dtype))
        found["encode_text"][way] = plain(pure.encode_text, tokens)
    return found


def plain(encode: Callable[[Tensor], Tensor], x: Tensor) -> Encode:
    """Without autocast."""

    def run() -> Tensor:
        with torch.no_grad():
            return unit_norm(encode(x))

    return run


def compare(what: str, encodes: dict[str, Encode], *, batch_size: int, rounds: int) -> list[str]:
    """Cells of a row: rates, ratios, and how far the features are apart."""
    seconds: dict[str, list[float]] = {way: [] for way in encodes}
    features: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for way, encode in encodes.items():
            began = time.process_time()
            features[way] = encode()
            if turn:  # the first warms up
                seconds[way].append(time.process_time() - began)
    ours = seconds.pop("ours")
    cells = [what, f"{batch_size / statistics.median(ours):.1f}"]
    for way in ("open_clip", "open_clip in bf16 throughout"):
        if way not in seconds:
            cells += ["", ""]
            continue
        ratios = [b / a for a, b in zip(ours, seconds[way], strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        cells += [
            f"{batch_size / statistics.median(seconds[way]):.1f}",
            f"**{statistics.median(ratios):.2f}x** {spread}",
        ]
    apart = (features["ours"] - features["open_clip"].float()).abs().max()
    return [*cells, f"{apart:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Encoding images and texts, ours against open_clip",
        "",
        f"{describe_machine()}, open_clip {open_clip.__version__}; one thread, batch "
        f"{arguments.batch_size}, rows per second of processor time, median of "
        f"{arguments.rounds} alternating rounds, in brackets the ratio's range over them. The last "
        "column is the largest difference of a feature of unit length.",
        "",
        "| model | format | | ours | open_clip | ours / open_clip | open_clip, bf16 throughout "
        "| ours / that | apart |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name, precision in itertools.product(arguments.models, arguments.precisions):
        for what, encodes in ways(name, arguments.batch_size, precision).items():
            rounds, batch_size = arguments.rounds, arguments.batch_size
            cells = compare(what, encodes, batch_size=batch_size, rounds=rounds)
            lines.append("| " + " | ".join([name, precision, *cells]) + " |")
            print(lines[-1], flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
