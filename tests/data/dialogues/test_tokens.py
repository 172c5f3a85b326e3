"""Dialogues that are too long: no image is ever cut, the oldest turns go, or it is a bad sample."""

import json
from pathlib import Path

import pytest

from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.dialogues.dialogue import IMAGE, Turn
from mmtrain.data.dialogues.tokens import DialogueText, DialogueTokens
from mmtrain.data.sample_error import SampleError
from mmtrain.data.text.language_tokens import LanguageTokens, define
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig
from mmtrain.errors import UsageError
from mmtrain.interop.hf_decoder_files import read_tokenizer
from tests.data.dialogues.dialogue_files import write_jsonl, write_pictures
from tests.data.dialogues.test_batches import TOKENIZER, build_data
from tests.data.text.chat_templates import CHATS, write_chat_folder

PER_PIECE = 3
TURNS = (
    Turn("system", "be brief"),
    Turn("user", f"{IMAGE}what is it? {IMAGE}"),
    Turn("assistant", "red"),
    Turn("user", "and that? what is the shape there?"),
    Turn("assistant", "a blue circle"),
    Turn("user", f"this {IMAGE}"),
    Turn("assistant", "green"),
)


def chat_tokenizer(name: str, folder: Path) -> Tokenizer:
    write_chat_folder(name, folder)
    return read_chat(folder)


def read_chat(folder: Path) -> Tokenizer:
    language = read_tokenizer(folder)
    assert language is not None
    model = LanguageTokens(define(language, chat=True))
    config = TokenizerConfig(
        kind="language", path="x", context_length=16, clean="none", add_eot=False
    )
    return Tokenizer(config, model)


def text_of(tokenizer: Tokenizer, most: int, **changes: str) -> DialogueText:
    config = DialogueDataConfig(max_length=most, **changes)
    return DialogueText(tokenizer, config, tokens_per_piece=PER_PIECE)


def said(tokenizer: Tokenizer, tokens: DialogueTokens) -> str:
    kept = [token for token, is_image in zip(tokens.ids, tokens.image, strict=True) if not is_image]
    return tokenizer.decode(kept)


@pytest.mark.parametrize("name", ["plain", "smollm2", "llama 3", "olmo 2", "qwen3"])
def test_what_is_too_long_loses_its_oldest_turns_and_no_image(name: str, tmp_path: Path):
    tokenizer = TOKENIZER if name == "plain" else chat_tokenizer(name, tmp_path / "folder")
    pieces = [1, 2, 1]
    whole = text_of(tokenizer, 4096).encode(TURNS, pieces)
    assert sum(whole.image) == PER_PIECE * 4 and whole.num_left_out == 0
    shortest = None
    for most in range(len(whole.ids), PER_PIECE + 1, -1):
        try:
            found = text_of(tokenizer, most).encode(TURNS, pieces)
        except SampleError as error:
            assert str(error) == "dialogue too long"
            assert error.detail.startswith(f"{len(whole.ids):,} tokens, 12 of them its images', of")
            shortest = shortest or most
            continue
        assert shortest is None and len(found.ids) <= most
        assert sum(found.image) == sum(whole.image)
        assert "brief" in said(tokenizer, found) and "green" in said(tokenizer, found)
        assert found.num_left_out in (0, 2, 4)
        if found.num_left_out == 0:
            assert found == whole
        else:
            assert "red" not in said(tokenizer, found)
            # The images of what was left out come before what is asked first.
            first = found.image.index(True)
            assert all(found.image[first : first + PER_PIECE * 3])
        if found.num_left_out == 4:
            assert "circle" not in said(tokenizer, found)
    assert shortest is not None
    with pytest.raises(SampleError, match="dialogue too long"):
        text_of(tokenizer, len(whole.ids) - 1, too_long="refuse").encode(TURNS, pieces)


def test_too_long_dialogues_are_counted(tmp_path: Path):
    write_pictures(tmp_path, 8)
    turns = [
        {"from": who, "value": text}
        for number in range(4)
        for who, text in (("human", f"what color is thing {number}?"), ("gpt", "blue"))
    ]
    turns[0]["value"] = f"{IMAGE}{turns[0]['value']}"
    short = [{"from": "human", "value": f"{IMAGE}a"}, {"from": "gpt", "value": "b"}]
    rows = [
        {"id": n, "conversations": turns if n < 3 else short, "image": f"pictures/{n}.png"}
        for n in range(8)
    ]
    rows[7]["conversations"] = [short[0] | {"value": f"{IMAGE}{'what color ' * 30}"}, short[1]]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    data = build_data(path, max_length=24)
    assert [*data.told()] == [
        "of 8 dialogues looked at, 4 are longer than vqa.dialogues.max_length = 24: 3 lose their "
        "oldest turns, 1 cannot be used"
    ]
    batches = [*data.iterate(0, 2)]
    assert data.work.figures()["data_shortened"] >= 3
    bad = [one for batch in batches for one in batch.bad]
    assert [(one.key, one.reason) for one in bad] == [("7", "dialogue too long")]
    assert bad[0].shard == f"{path}:8" and "of at most 24" in bad[0].detail
    assert [*build_data(path, max_length=512).told()] == []
    line = next(line for line in data.work.table(waited=0.1, passed=1.0) if "too long" in line)
    assert "dialogues lost their oldest turns, see vqa.dialogues.max_length" in line


@pytest.mark.parametrize("name", [*CHATS])
def test_what_is_learnt_ends_with_the_end_token(name: str, tmp_path: Path):
    tokenizer = chat_tokenizer(name, tmp_path / "folder")
    turns = TURNS[1:]  # not all templates know what the system says
    found = text_of(tokenizer, 4096).encode(turns, [1, 1, 1])
    ends = [
        found.ids[place]
        for place, learnt in enumerate(found.trained)
        if learnt and not (*found.trained, False)[place + 1]
    ]
    assert ends == [tokenizer.eot_id] * 3
    learnt = [token for token, one in zip(found.ids, found.trained, strict=True) if one]
    words = "".join(tokenizer.decode(learnt).split())  # of one template with an empty thought
    assert words.replace("<think>", "").replace("</think>", "") == "redabluecirclegreen"


@pytest.mark.parametrize("name", ["gemma 2"])
def test_what_a_template_refuses_is_a_bad_sample(name: str, tmp_path: Path):
    tokenizer = chat_tokenizer(name, tmp_path / "folder")
    with pytest.raises(SampleError, match="chat template refuses the dialogue") as refused:
        text_of(tokenizer, 4096).encode(TURNS, [1, 1, 1])
    assert refused.value.detail == "System role not supported"


def test_a_template_without_an_end_is_refused(tmp_path: Path):
    folder = tmp_path / "folder"
    write_chat_folder("smollm2", folder)
    path = folder / "tokenizer_config.json"
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": bare}))
    with pytest.raises(UsageError, match="puts no end token behind an answer"):
        text_of(read_chat(folder), 64)


@pytest.mark.parametrize("name", ["plain", "smollm2", "llama 3", "olmo 2", "qwen3"])
@pytest.mark.parametrize("num_earlier", [0, 1, 3])
def test_a_later_question_reads_as_a_dialogue_is_learnt(
    name: str, num_earlier: int, tmp_path: Path
):
    """Up to where the last answer begins; images stand before the first question."""
    tokenizer = TOKENIZER if name == "plain" else chat_tokenizer(name, tmp_path / "folder")
    text = text_of(tokenizer, 500)
    rows = [("what is it?", "red"), ("and the shape?", "a blue circle"), ("is it?", "yes it is")]
    earlier = [
        Turn(role, said)
        for row in rows[:num_earlier]
        for role, said in zip(("user", "assistant"), row, strict=True)
    ]
    turns = [*earlier, Turn("user", "how large?"), Turn("assistant", "very large")]
    turns[0] = Turn("user", f"{IMAGE}{IMAGE}{turns[0].text}")
    learnt = text.encode(turns, [2, 1])
    asked = text.ask("how large?", [2, 1], earlier=earlier)
    end = len(asked.ids)
    assert (learnt.ids[:end], learnt.image[:end]) == (asked.ids, asked.image)
    said = [place for place, is_said in enumerate(learnt.trained) if is_said]
    assert not learnt.trained[end - 1] and said[said.index(end) :] == list(range(end, said[-1] + 1))


@pytest.mark.parametrize("name", ["plain", "smollm2"])
def test_a_later_question_that_cannot_be_read(name: str, tmp_path: Path):
    """A place of an image, wherever it is said; and a question of which no word is left."""
    tokenizer = TOKENIZER if name == "plain" else chat_tokenizer(name, tmp_path / "folder")
    text = text_of(tokenizer, 500)
    before = [Turn("user", "what is it?"), Turn("assistant", "red")]
    for question, earlier in (
        (f"is {IMAGE} red?", []),
        (f"is {IMAGE} red?", before),
        ("is it?", [Turn("user", IMAGE), before[1]]),
        ("is it?", [before[0], Turn("assistant", f"a {IMAGE}")]),
    ):
        with pytest.raises(SampleError, match="<image> stands for an image"):
            text.ask(question, [1], earlier=earlier)
    with pytest.raises(SampleError, match="no words"):
        text.ask("?!" if name == "plain" else "", [1], earlier=before)
