"""Writing text: our cached decoding against the same model without a cache and against
`transformers.generate` on the same weights, alternating in one run.

The weights are random, of a Llama's shape; all three write the same number of tokens greedily after
prompts of equal length, and must write the same ones. Prints tokens per second (of all rows
together, prompts read included) of processor time, which other work on the machine disturbs least,
and the ratio round by round. One thread, so that processor time is time.

    python benchmarks/decode.py --out benchmarks/results/decode_cpu.md
    python benchmarks/decode.py --shapes smollm2 --batch-sizes 1 --new 32
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from machine import describe_machine
from torch import Tensor

from mmtrain.interop.hf_decoder_files import read_hf_decoder
from mmtrain.models import Decoder
from mmtrain.models.fused import fused_decoder
from mmtrain.models.generate import generate
from mmtrain.models.prefill import prefill
from mmtrain.models.sampling import GenerationConfig

SHAPES = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
    },
    # SmolLM2-135M, which small VLMs start from.
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
}
Write = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Job:
    """How much is read and written."""

    batch_size: int
    prompt: int
    new: int


def build_models(shape: str, limit: int) -> tuple[Decoder, transformers.LlamaForCausalLM]:
    """The same random weights as theirs and as ours."""
    config = transformers.LlamaConfig(
        **SHAPES[shape], max_position_embeddings=limit, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    # Larger than a trainer's start, so that the likeliest token is the likeliest by far.
    for parameter in theirs.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=2 * parameter.size(1) ** -0.5)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        package = read_hf_decoder(Path(folder))
        ours = Decoder(package.config)
        ours.load_state_dict(package.tensors)
    return ours.eval(), theirs


def write_cached(decoder: Decoder, prompts_BT: Tensor, new: int) -> Tensor:
    """Our decoding; joining the weights counts."""
    decoder = fused_decoder(decoder)
    start = prefill(decoder, prompts_BT, max_new_tokens=new)
    return torch.tensor(generate(decoder, start, GenerationConfig(max_new_tokens=new)))


@torch.inference_mode()
def write_uncached(decoder: Decoder, prompts_BT: Tensor, new: int) -> Tensor:
    """The whole text through the decoder for every token."""
    tokens_BT = prompts_BT
    for _ in range(new):
        next_B = decoder(tokens_BT, num_logits=1)[:, -1].argmax(-1)
        tokens_BT = torch.cat([tokens_BT, next_B[:, None]], dim=1)
    return tokens_BT[:, prompts_BT.size(1) :]


def write_theirs(model: transformers.LlamaForCausalLM, prompts_BT: Tensor, new: int) -> Tensor:
    """transformers' generate with its default cache."""
    tokens_BT = model.generate(
        prompts_BT,
        attention_mask=torch.ones_like(prompts_BT),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    return tokens_BT[:, prompts_BT.size(1) :]


def compare(shape: str, job: Job, rounds: int) -> str:
    """One row of the table."""
    ours, theirs = build_models(shape, job.prompt + job.new)
    generator = torch.Generator().manual_seed(1)
    size = (job.batch_size, job.prompt)
    prompts_BT = torch.randint(4, SHAPES[shape]["vocab_size"], size, generator=generator)
    ways: dict[str, Write] = {
        "cached": lambda: write_cached(ours, prompts_BT, job.new),
        "uncached": lambda: write_uncached(ours, prompts_BT, job.new),
        "theirs": lambda: write_theirs(theirs, prompts_BT, job.new),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    written: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for way, write in ways.items():
            if way == "uncached" and turn > 1:
                continue  # it is far away and takes the longest: one round will do
            began = time.process_time()
            written[way] = write()
            if turn:  # the first warms up
                seconds[way].append(time.process_time() - began)
    same = [torch.equal(written["cached"], other) for other in written.values()]
    if not all(same):
        raise SystemExit(f"{shape}: the three do not write the same tokens")
    ratios = [b / a for a, b in zip(seconds["cached"], seconds["theirs"], strict=True)]
    rate = {w: job.batch_size * job.new / statistics.median(s) for w, s in seconds.items()}
    size_m = sum(p.numel() for p in ours.parameters()) / 1e6
    return (
        f"| {shape}, {size_m:.0f} M | {job.batch_size} | {rate['cached']:.1f} "
        f"| {rate['uncached']:.1f} | {rate['theirs']:.1f} "
        f"| **{statistics.median(ratios):.2f}x** ({min(ratios):.2f} to {max(ratios):.2f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["tiny", "smollm2"], choices=tuple(SHAPES))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=64, help="tokens read (default: 64)")
    parser.add_argument("--new", type=int, default=64, help="tokens written (default: 64)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    lines = [
        "# Writing text, ours against transformers",
        "",
        f"{describe_machine()}, transformers {transformers.__version__}; fp32, "
        f"one thread, prompts of {arguments.prompt} tokens, {arguments.new} written; tokens per "
        f"second of processor time, median of {arguments.rounds} alternating rounds.",
        "",
        "| shape | rows | ours | ours, no cache | transformers | ours / transformers |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for shape in arguments.shapes:
        for batch_size in arguments.batch_sizes:
            job = Job(batch_size=batch_size, prompt=arguments.prompt, new=arguments.new)
            lines.append(compare(shape, job, arguments.rounds))
            print(lines[-1], flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
