"""`mmtrain generate`: let a decoder write."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command, add_device
from mmtrain.settings.numbers import at_least, fraction, positive


def add_generate(commands: Any) -> None:
    """The command that writes text."""
    parser = add_command(commands, "generate", "let a decoder go on with a text", _generate)
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a folder in Hugging Face's form: GPT-1, GPT-2, Llama, Qwen2 or Gemma; or "
        "hf://OWNER/NAME[@REVISION], fetched from its hub",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="what it goes on with; given several times, all go in one batch",
    )
    parser.add_argument(
        "--chat", action="store_true", help="each prompt is a user's turn, in the model's template"
    )
    parser.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="choose among its lines instead of writing: the likeliest ones and their probability",
    )
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), metavar="N", help="64, or what the context leaves"
    )
    parser.add_argument(
        "--temperature", type=positive, metavar="T", help="draw tokens; without it the likeliest"
    )
    parser.add_argument("--top-k", type=at_least(1), metavar="K", help="draw from the K likeliest")
    parser.add_argument("--top-p", type=fraction, metavar="P", help="draw from the likeliest P")
    parser.add_argument("--num-beams", type=at_least(1), metavar="N", help="search (1)")
    parser.add_argument("--seed", type=at_least(0), metavar="N", help="of the draws (0)")
    add_device(parser)


def _generate(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.generate import generate_command

    generate_command(
        model=arguments.model,
        prompts=arguments.prompt,
        chat=arguments.chat,
        answers=arguments.answers,
        max_new_tokens=arguments.max_new_tokens,
        sampling={
            "temperature": arguments.temperature or 0.0,
            "top_k": arguments.top_k,
            "top_p": arguments.top_p,
            "num_beams": arguments.num_beams or 1,
        },
        seed=arguments.seed,
        device=arguments.device,
    )
