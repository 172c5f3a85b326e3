"""A decoder as two ONNX graphs, prefill.onnx and step.onnx, held against torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.files import replace_file, replacing_folder
from mmtrain.interop.decoder_graphs import PromptGraph, Reader, prefill_graph, step_graph
from mmtrain.interop.graph_folder import write_description
from mmtrain.interop.graphs import Graph, Port, trace
from mmtrain.interop.hf_decoder_files import CONFIG_FILE, JSON_FILE, DecoderPackage
from mmtrain.interop.onnx_program import (
    FORM,
    OPSET,
    check_packages,
    open_session,
    write_program,
)
from mmtrain.interop.tower_graphs import BATCHES, TOLERANCE, quiet, refusing
from mmtrain.models import Decoder
from mmtrain.models.prefill import Prefilled, left_pad, prefill

_LONGEST = 8
"""Tokens of a drawn prompt, and tokens that are written behind it, at most."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Rows to try the graphs on."""

    inputs: Sequence[Tensor]
    """What prefill is given."""
    start: Prefilled
    """What torch reads of the same rows."""


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A graph in its file."""

    entry: dict[str, Any]
    """What model.json says of it."""
    run: Callable[..., list[Tensor]]
    """Inputs in order -> outputs in order."""


def write_file(graph: Graph, folder: Path, *, weights: str) -> WrittenFile:
    """Write a graph.

    Raises:
        UsageError: the exporter cannot take it.
    """
    path = folder / f"{graph.name}.onnx"
    ends = {"inputs": graph.inputs, "outputs": graph.outputs}
    write_program(trace(graph, form=FORM), path, of=graph, **ends, weights=weights)
    with refusing(graph, form=FORM), quiet():
        session = open_session(path)
    names = [port.name for port in graph.inputs]

    def run(*inputs: Tensor) -> list[Tensor]:
        feeds = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        with refusing(graph, form=FORM), quiet():
            return [torch.from_numpy(x) for x in session.run(None, feeds)]

    given = zip(graph.inputs, graph.example, strict=True)
    entry = {
        "file": path.name,
        "inputs": [_described(port) | {"dtype": _dtype(x)} for port, x in given],
        "outputs": [_described(port) for port in graph.outputs],
    }
    return WrittenFile(entry=entry, run=run)


def write_decoder(
    network: Reader,
    readings: Sequence[Reading],
    folder: Path,
    *,
    weights: str,
    num_steps: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write prefill.onnx and step.onnx -> what model.json says of them.

    Args:
        network: reads prompts, questions behind images, or dialogues.
        readings: rows to try them on; the first two of each input of the last ones are traced with.
        folder: of the files.
        weights: fp32, fp16 or int8.
        num_steps: tokens to write behind them.
        say: how near to torch they are.

    Raises:
        UsageError: the exporter cannot take the decoder, or logits of fp32 weights are not torch's.
    """
    decoder, example = network.decoder, tuple(x[:2] for x in readings[-1].inputs)
    with torch.no_grad():
        given = network(*example)
    files = {
        graph.name: write_file(graph, folder, weights=weights)
        for graph in (
            prefill_graph(network, example),
            step_graph(decoder, given),
        )
    }
    difference, same, num_rows = _written_beside(
        decoder, files["prefill"].run, files["step"].run, readings, num_steps
    )
    refuse_other_logits(difference, weights=weights, told="the decoder")
    say(
        f"prefill.onnx, step.onnx: opset {OPSET}, {weights}; logits beside torch's: at most "
        f"{difference:.1g} away, {same} of {num_rows} greedy answers of {num_steps} tokens the same"
    )
    beside = {"largest_difference": difference, "same_answers": [same, num_rows]}
    return {name: file.entry for name, file in files.items()} | {"beside_torch": beside}


def write_onnx_decoder(
    package: DecoderPackage, folder: Path, *, weights: str, say: Callable[[str], None]
) -> None:
    """Write a decoder alone, its tokenizer's files and model.json.

    Raises:
        UsageError: the extra is not installed, or as `write_decoder`.
    """
    check_packages()
    with torch.device("meta"):
        decoder = Decoder(package.config)
    decoder.load_state_dict(package.tensors, assign=True)
    decoder = decoder.eval().requires_grad_(False)
    longest = min(_LONGEST, package.config.context_length // 2)
    drawn = torch.Generator().manual_seed(0)
    lengths = [1, longest, 1, longest // 2 + 1][: sum(BATCHES)]
    rows = [_drawn_ids(length, package.config.vocab_size, drawn) for length in lengths]
    readings = [_prompts(decoder, some, longest) for some in (rows[:1], rows[1:])]
    tokenizer = package.tokenizer
    with replacing_folder(folder) as place:
        graphs = write_decoder(
            PromptGraph(decoder), readings, place, weights=weights, num_steps=longest, say=say
        )
        for name, content in package.files.items():
            if name != CONFIG_FILE:
                replace_file(place / name, content)
        answer = {
            "context_length": package.config.context_length,
            "end_ids": list(tokenizer.end_ids if tokenizer else package.end_ids),
            "tokenizer_file": JSON_FILE if JSON_FILE in package.files else None,
        }
        facts = {"opset": OPSET, "weights": weights}
        write_description(place, form=FORM, facts=facts | graphs | {"answer": answer})


def refuse_other_logits(difference: float, *, weights: str, told: str) -> None:
    """Refuse a graph of fp32 weights that computes something else.

    Raises:
        UsageError: by how much.
    """
    if weights == "fp32" and difference > TOLERANCE:
        raise UsageError(
            f"format = {FORM}: logits of {told} are {difference:.1g} from torch's, more than "
            f"{TOLERANCE:g}; nothing was written"
        )


def logits_apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference of two, as a share of the largest logit where that is above 1."""
    apart = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1)
    return apart.nan_to_num(nan=torch.inf).item()


@torch.no_grad()
def _written_beside(
    decoder: Decoder,
    read: Callable[..., list[Tensor]],
    step: Callable[..., list[Tensor]],
    readings: Sequence[Reading],
    num_steps: int,
) -> tuple[float, int, int]:
    """The largest difference of logits, rows whose greedy answers are the same, rows.

    The graphs are given torch's tokens, so that one near tie does not make all that follows another
    text: answers are the same where every one of the graphs' own would have been.
    """
    difference, same, num_rows = 0.0, 0, 0
    for reading in readings:
        logits_BV, cache = reading.start.logits_BV, reading.start.cache
        found_BV, *state = read(*reading.inputs)
        same_B = torch.ones(len(logits_BV), dtype=torch.bool)
        for number in range(num_steps):
            token_B = logits_BV.argmax(-1)
            difference = max(difference, logits_apart(found_BV, logits_BV))
            same_B &= found_BV.argmax(-1) == token_B
            if number + 1 < num_steps:
                found_BV, *state = step(token_B, *state)
                logits_BV = decoder(token_B[:, None], cache=cache)[:, 0]
        same, num_rows = same + int(same_B.sum()), num_rows + len(same_B)
    return difference, same, num_rows


def _prompts(decoder: Decoder, rows: Sequence[Sequence[int]], num_steps: int) -> Reading:
    tokens_BT, real_BT = left_pad(rows)
    start = prefill(decoder, tokens_BT, real_BT=real_BT, max_new_tokens=num_steps)
    length_B = torch.tensor([len(row) for row in rows])
    most = int(length_B.max())
    ids_BT = torch.tensor([[*row, *[0] * (most - len(row))] for row in rows])
    return Reading(inputs=(ids_BT, length_B), start=start)


def _drawn_ids(length: int, vocab_size: int, generator: torch.Generator) -> list[int]:
    return torch.randint(vocab_size, (length,), generator=generator).tolist()


def _described(port: Port) -> dict[str, Any]:
    return {"name": port.name, "shape": list(port.dims)}


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
