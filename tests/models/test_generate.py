"""Generation against transformers' generate on the same weights, and against the plain formulas."""

import functools
import itertools

import pytest
import torch
from torch import Tensor

from mmtrain.interop.hf_decoder import decoder_from_hf
from mmtrain.models import Decoder
from mmtrain.models.beam_search import beam_search
from mmtrain.models.generate import generate, stream
from mmtrain.models.prefill import Prefilled, left_pad, prefill
from mmtrain.models.sampling import GenerationConfig, keep_likely, pick_next
from mmtrain.models.score_answers import AnswerTrie, read_prompts, score_answers
from tests.interop.decoder_folders import build_peer

PROMPTS = [[3, 8, 1, 20, 33, 4], [7, 7], [12, 40, 2]]
PEERS = ["gpt2", "llama grouped, wide heads", "gemma multi-query"]


@functools.cache
def pair(name: str):
    """A peer's weights in ours, its generate, and end tokens that two of three texts meet."""
    peer = build_peer(name)
    config, tensors = decoder_from_hf(peer.config.to_dict(), peer.state_dict())
    ours = Decoder(config)
    ours.load_state_dict(tensors)
    free = generate(ours, start(ours), GenerationConfig(max_new_tokens=9))
    ends = (free[0][4], free[1][8])

    def theirs(**options) -> list[list[int]]:
        tokens, real = left_pad(PROMPTS)
        out = peer.generate(
            tokens, attention_mask=real.long(), eos_token_id=list(ends), pad_token_id=0, **options
        )
        return [cut(row, ends) for row in out[:, tokens.size(1) :].tolist()]

    return ours.eval(), theirs, ends


def cut(row: list[int], ends: tuple[int, ...]) -> list[int]:
    """A row up to its first end token."""
    stops = [i for i, token in enumerate(row) if token in ends]
    return row[: stops[0] + 1] if stops else row


def start(decoder: Decoder, prompts=PROMPTS, *, room: int = 24) -> Prefilled:
    tokens, real = left_pad(prompts)
    return prefill(decoder, tokens, real_BT=real, max_new_tokens=room)


@pytest.mark.parametrize("name", PEERS)
def test_greedy_is_transformers_for_prompts_of_different_lengths(name):
    ours, theirs, ends = pair(name)
    config = GenerationConfig(max_new_tokens=24, end_ids=ends)
    got = generate(ours, start(ours), config)
    assert got == theirs(max_new_tokens=24, do_sample=False)
    for prompt, row in zip(PROMPTS, got, strict=True):
        assert generate(ours, start(ours, [prompt]), config) == [row], "a neighbour matters"


@pytest.mark.parametrize("penalty", [1.0, 0.3])
@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("name", PEERS)
def test_beam_search_is_transformers(name, beams, penalty):
    ours, theirs, ends = pair(name)
    config = GenerationConfig(
        max_new_tokens=16, end_ids=ends, num_beams=beams, length_penalty=penalty
    )
    want = theirs(max_new_tokens=16, do_sample=False, num_beams=beams, length_penalty=penalty)
    assert generate(ours, start(ours), config) == want


def test_some_texts_of_these_tests_end_and_some_do_not():
    ended = set()
    for name in PEERS:
        ours, _, ends = pair(name)
        for beams in (1, 4):
            config = GenerationConfig(max_new_tokens=16, end_ids=ends, num_beams=beams)
            ended |= {(beams, r[-1] in ends) for r in generate(ours, start(ours), config)}
    assert len(ended) == 4


@torch.no_grad()
def test_a_beams_score_is_its_texts_log_probability():
    ours, _, _ = pair("gpt2")
    config = GenerationConfig(max_new_tokens=5, num_beams=3)
    for prompt, text in zip(PROMPTS, beam_search(ours, start(ours), config), strict=True):
        total = answer_log_p(ours, prompt, text.tokens)
        assert text.score == pytest.approx(total / 5, abs=1e-4)


def answer_log_p(decoder: Decoder, prompt: list[int], answer: list[int]) -> float:
    """The sum over its tokens, one plain forward pass."""
    logits = decoder(torch.tensor([prompt + answer[:-1]]))[0, len(prompt) - 1 :].log_softmax(-1)
    return logits[torch.arange(len(answer)), torch.tensor(answer)].sum().item()


@pytest.mark.parametrize("max_nodes", [2, 256])
@pytest.mark.parametrize("name", PEERS)
@torch.no_grad()
def test_answers_score_their_total_log_probability(name, max_nodes):
    """Shared beginnings, one answer inside another, one twice, prompts of different lengths."""
    ours, _, _ = pair(name)
    answers = [[5, 6, 7], [5, 6], [5, 6, 8, 9], [4], [5, 1], [9, 9, 9, 9, 9], [4], [9, 2]]
    trie = AnswerTrie(answers, max_nodes=max_nodes)
    tokens, real = left_pad(PROMPTS)
    begin = read_prompts(ours, tokens, trie, real_BT=real)
    got = score_answers(ours, begin, trie)
    want = [[answer_log_p(ours, p, a) for a in answers] for p in PROMPTS]
    torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=1e-4)
    assert torch.equal(score_answers(ours, begin, trie), got), "the cache is as it was"


def test_a_trie_feeds_no_shared_token_twice():
    trie = AnswerTrie([[5, 6, 7], [5, 6], [5, 6, 8, 9], [4, 1], [2]], max_nodes=3)
    # Inner nodes alone: 4; 5, 56, 568. Whole trees of a first token stay together.
    assert [[trie.token[n] for n in chunk] for chunk in trie.chunks] == [[4], [5, 6, 8]]
    assert trie.max_chunk == 3
    for answers in ([], [[]], [[1], []]):
        with pytest.raises(ValueError, match="every answer needs at least one token"):
            AnswerTrie(answers)


def draw_answers(num: int, longest: int, seed: int) -> list[list[int]]:
    """Different answers of few ids, so that they share their beginnings."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < num:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        drawn[tuple(torch.randint(1, 50, (length,), generator=generator).tolist())] = None
    return [list(answer) for answer in drawn]


@functools.cache
@torch.no_grad()
def drawn_and_one_by_one(
    name: str, num: int, longest: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Answers, and their log-probabilities behind each prompt, each by itself."""
    ours, _, _ = pair(name)
    answers = draw_answers(num, longest, seed=num)
    if longest == 58:
        answers[0] = [7] * 59
    return answers, [[answer_log_p(ours, prompt, a) for a in answers] for prompt in PROMPTS]


@pytest.mark.parametrize("max_nodes", [4, 31, 256])
@pytest.mark.parametrize(("num", "longest"), [(1, 1), (3, 58), (60, 3), (85, 2), (88, 2), (200, 4)])
@pytest.mark.parametrize("name", ["gpt2", "llama grouped, wide heads"])
@torch.no_grad()
def test_any_number_of_answers_is_scored_as_one_by_one(name, num, longest, max_nodes):
    """The context of 64 holds the longest prompt and an answer of 58 that nobody reads to its
    end; how many answers there are beside it is no matter of the context."""
    ours, _, _ = pair(name)
    answers, want = drawn_and_one_by_one(name, num, longest)
    trie = AnswerTrie(answers, max_nodes=max_nodes)
    assert trie.max_chunk <= max(max_nodes + longest, 59)
    tokens, real = left_pad(PROMPTS)
    got = score_answers(ours, read_prompts(ours, tokens, trie, real_BT=real), trie)
    torch.testing.assert_close(got, torch.tensor(want), rtol=3e-6, atol=1e-4)


def test_an_answer_beyond_the_context_is_refused_before_any_pass():
    ours, _, _ = pair("gpt2")
    tokens, real = left_pad(PROMPTS)
    for answer in ([7] * 60, [7] * 200):
        with pytest.raises(
            ValueError, match=r"a prompt of 6 tokens and .* exceed context_length = 64"
        ):
            read_prompts(ours, tokens, AnswerTrie([[1], answer]), real_BT=real)
    with pytest.raises(ValueError, match="a prompt of 70 tokens"):
        start(ours, [[1] * 70], room=1)


def test_a_tree_that_is_too_large_is_read_in_pieces():
    answers = [[5, n, m] for n in range(10, 14) for m in (1, 2)]
    trie = AnswerTrie(answers, max_nodes=3)
    # The first token, on which all of them hang, is read with each piece.
    assert [[trie.token[n] for n in chunk] for chunk in trie.chunks] == [[5, 10, 11], [5, 12, 13]]


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.6), (5, None), (5, 0.7), (1, None)])
def test_kept_tokens_are_transformers(top_k, top_p):
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    want = logits
    if top_k is not None:
        want = TopKLogitsWarper(top_k)(None, want)
    if top_p is not None:
        want = TopPLogitsWarper(top_p)(None, want)
    assert torch.equal(keep_likely(logits, top_k=top_k, top_p=top_p), want)


def test_draws_follow_the_tempered_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, -1)
    config = GenerationConfig(temperature=0.5, top_k=3)
    drawn = pick_next(logits, config, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    want = torch.tensor([4.0, 2.0, 0.0, float("-inf")]).softmax(0)
    torch.testing.assert_close(share, want, rtol=0, atol=0.01)


def test_a_seed_repeats_a_text():
    ours, _, _ = pair("gpt2")
    config = GenerationConfig(max_new_tokens=8, temperature=1.0, top_p=0.9)

    def draw(seed: int) -> list[list[int]]:
        return generate(ours, start(ours), config, generator=torch.Generator().manual_seed(seed))

    assert draw(0) == draw(0) != draw(1)


def test_streaming_gives_a_step_at_a_time_and_stops_when_all_have_ended():
    ours, _, _ = pair("gpt2")
    free = generate(ours, start(ours), GenerationConfig(max_new_tokens=24))
    ends = tuple({row[2] for row in free})
    config = GenerationConfig(max_new_tokens=24, end_ids=ends)
    begin = start(ours)
    steps: list[Tensor] = list(itertools.islice(stream(ours, begin, config), 1))
    assert begin.cache.num_slots == 6, "the second token is not computed before it is asked for"
    steps = list(stream(ours, start(ours), config))
    rows = torch.stack(steps, 1).tolist()
    for row, whole in zip(rows, free, strict=True):
        stop = next(i for i, token in enumerate(whole) if token in ends) + 1
        assert row == whole[:stop] + [-1] * (len(steps) - stop)
    assert len(steps) <= 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0 must be at least 1"),
        ({"temperature": -1.0}, "temperature = -1.0 must be at least 0"),
        ({"top_k": 5}, "set temperature above 0"),
        ({"top_p": 1.5, "temperature": 1.0}, r"top_p = 1.5 must lie in \(0, 1\]"),
        ({"num_beams": 2, "temperature": 1.0}, "leave one out"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**fields)


def test_what_does_not_fit_is_refused():
    ours, _, _ = pair("gpt2")
    with pytest.raises(ValueError, match="6 tokens and max_new_tokens = 60 exceed context_length"):
        start(ours, room=60)
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        left_pad([[1], []])
    beams = GenerationConfig(num_beams=2)
    with pytest.raises(ValueError, match="nothing to stream"):
        next(stream(ours, start(ours), beams))
