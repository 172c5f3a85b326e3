"""`mmtrain generate`: a decoder goes on with texts, or chooses among answers."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.commands.answer_list import read_answer_list
from mmtrain.data.text.language_tokenizer import LanguageTokenizer
from mmtrain.errors import UsageError
from mmtrain.loading import load_decoder
from mmtrain.models import Decoder
from mmtrain.models.fused import fused_decoder
from mmtrain.models.generate import generate, stream
from mmtrain.models.prefill import Prefilled, left_pad, prefill
from mmtrain.models.sampling import GenerationConfig
from mmtrain.models.score_answers import AnswerTrie, read_prompts, score_answers
from mmtrain.parallel.mesh import pick_device

SHOWN_ANSWERS = 5


def generate_command(
    *,
    model: str,
    prompts: list[str],
    chat: bool,
    answers: Path | None,
    max_new_tokens: int | None,
    sampling: dict[str, Any],
    seed: int | None,
    device: str,
) -> None:
    """Print what the decoder makes of each prompt; a single one as it is written.

    Raises:
        UsageError: a folder or file cannot be read, or the settings contradict each other.
    """
    _refuse_unread(
        {"max_new_tokens": max_new_tokens, "seed": seed, **sampling}, chooses=answers is not None
    )
    place = pick_device(device, key="device")
    decoder, tokenizer = load_decoder(model, device=place)
    if tokenizer is None:
        raise UsageError(f"model = {model} holds no tokenizer (tokenizer.json, tokenizer.model)")
    decoder = fused_decoder(decoder, keep=False)
    rows = [_ids(prompt, tokenizer, chat=chat) for prompt in prompts]
    try:
        if answers is not None:
            _choose(decoder, tokenizer, prompts, rows, answers)
            return
        left = decoder.config.context_length - max(map(len, rows))
        config = GenerationConfig(
            end_ids=tokenizer.end_ids,
            max_new_tokens=max(1, min(64, left)) if max_new_tokens is None else max_new_tokens,
            **sampling,
        )
        start = _read(decoder, rows, config.max_new_tokens)
        generator = torch.Generator(place).manual_seed(seed or 0)
        if len(rows) == 1 and config.num_beams == 1:
            steps = stream(decoder, start, config, generator=generator)
            _tell_cut([_print_stream(steps, rows[0], tokenizer)], config)
            return
        texts = generate(decoder, start, config, generator=generator)
        for prompt, read, written in zip(prompts, rows, texts, strict=True):
            print(f"{prompt}{tokenizer.continuation(read, written)}")
        _tell_cut(texts, config)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _refuse_unread(given: dict[str, Any], *, chooses: bool) -> None:
    """Refuse an option that would not be looked at.

    Args:
        given: the options of writing, by name.
        chooses: whether an answer is chosen instead.
    """
    defaults = {"temperature": 0.0, "num_beams": 1}
    used = [name for name, value in given.items() if value != defaults.get(name)]
    if chooses and used:
        option = used[0].replace("_", "-")
        raise UsageError(f"--{option} has no effect with --answers, which writes nothing")
    if "seed" in used and "temperature" not in used:
        raise UsageError("--seed has no effect without --temperature: nothing is drawn")


def _ids(prompt: str, tokenizer: LanguageTokenizer, *, chat: bool) -> list[int]:
    if chat:
        return tokenizer.encode_chat([{"role": "user", "content": prompt}])
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UsageError(f'prompt = "{prompt}" has no token; give it a text')
    return ids


def _read(decoder: Decoder, rows: list[list[int]], room: int) -> Prefilled:
    device = next(decoder.parameters()).device
    tokens_BT, real_BT = left_pad(rows, device=device)
    return prefill(decoder, tokens_BT, real_BT=real_BT, max_new_tokens=room)


def _tell_cut(texts: Sequence[list[int]], config: GenerationConfig) -> None:
    """Say beside the texts, which stay as they are, that some are no whole ones."""
    # Of a model without an end token no text is one.
    cut = sum(bool(config.end_ids) and ids[-1] not in config.end_ids for ids in texts)
    if cut:
        which = "the text is" if len(texts) == 1 else f"{cut} of {len(texts)} texts are"
        after = f"cut off after {config.max_new_tokens} tokens"
        print(f"{which} {after}: no end token came; see --max-new-tokens", file=sys.stderr)


def _print_stream(
    steps: Iterator[Tensor], prompt: list[int], tokenizer: LanguageTokenizer
) -> list[int]:
    """Print a text as it comes, a character of several tokens with its last -> its tokens."""
    ids: list[int] = []
    shown = ""
    for next_B in steps:
        ids.append(int(next_B))
        text = tokenizer.continuation(prompt, ids)
        if not text.endswith("\ufffd"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.continuation(prompt, ids)[len(shown) :])
    return ids


def _choose(
    decoder: Decoder,
    tokenizer: LanguageTokenizer,
    prompts: list[str],
    rows: list[list[int]],
    path: Path,
) -> None:
    """Print the likeliest answers of each prompt, probabilities over the list."""
    answers = read_answer_list(path)
    # The end token tells "a" from "a b": without it the shorter one is always likelier.
    end = list(tokenizer.end_ids[:1])
    ids = [[*tokenizer.encode(f" {a}", special=False), *end] for a in answers]
    _refuse_too_long(decoder, rows, dict(zip(answers, ids, strict=True)), path)
    trie = AnswerTrie(ids)
    tokens_BT, real_BT = left_pad(rows, device=next(decoder.parameters()).device)
    scores_BA = score_answers(
        decoder, read_prompts(decoder, tokens_BT, trie, real_BT=real_BT), trie
    )
    for prompt, log_p in zip(prompts, scores_BA.cpu(), strict=True):
        print(prompt)
        best = log_p.softmax(0).topk(min(SHOWN_ANSWERS, len(answers)))
        for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {share:6.1%}  {log_p[index]:8.3f}  {answers[index]}")


def _refuse_too_long(
    decoder: Decoder, rows: list[list[int]], answers: dict[str, list[int]], path: Path
) -> None:
    """The longest prompt and the longest answer must fit; the last token is not read."""
    limit, prompt = decoder.config.context_length, max(map(len, rows))
    longest = max(answers, key=lambda answer: len(answers[answer]))
    read = len(answers[longest]) - 1
    if prompt + read > limit:
        raise UsageError(
            f"answers = {path}: a prompt of {prompt} tokens and the answer {_cut(longest)!r} of "
            f"{read + 1} exceed the model's context_length = {limit}; shorten one of them"
        )


def _cut(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
