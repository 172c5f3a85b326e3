"""The ids of dialogues are those of transformers, by templates in the forms of every family."""

import pickle
from pathlib import Path

import pytest

from mmtrain.data.text.language_tokenizer import LanguageTokenizer
from mmtrain.data.text.language_tokens import LanguageTokens, define
from mmtrain.errors import UsageError
from mmtrain.interop.hf_decoder_files import read_tokenizer
from tests.data.text.chat_templates import CHATS, draw_dialogue, write_chat_folder


def check_dialogues(folder: Path, seeds: range) -> int:
    """Compare all, each with and without the beginning of an answer -> how many were refused."""
    import jinja2
    import transformers

    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), read_tokenizer(folder)
    assert ours is not None
    refused = 0
    for seed in seeds:
        turns, asks = draw_dialogue(seed), bool(seed % 2)
        try:
            want = theirs.apply_chat_template(turns, add_generation_prompt=asks, return_dict=False)
        except jinja2.TemplateError:
            with pytest.raises(UsageError, match="chat template: "):
                ours.render_chat(turns, add_generation_prompt=asks)
            refused += 1
            continue
        text = ours.render_chat(turns, add_generation_prompt=asks)
        assert ours.encode(text, special=False) == want, (seed, text)
        if asks:
            assert ours.encode_chat(turns) == want
        assert ours.decode(want) == theirs.decode(want, skip_special_tokens=True)
    return refused


@pytest.mark.parametrize("name", CHATS)
def test_drawn_dialogues_have_transformers_ids(name: str, tmp_path: Path):
    write_chat_folder(name, tmp_path / "folder")
    refused = check_dialogues(tmp_path / "folder", range(200))
    assert (refused > 0) == name.startswith("gemma") and refused < 120


def special_id(language: LanguageTokenizer, token: str) -> int:
    (number,) = language.encode(token, special=False)
    return number


ENDS = {"smollm2": "<|im_end|>", "qwen2": "<|im_end|>", "llama 3": "<|eot_id|>"}
ENDS |= {"gemma 2": "<end_of_turn>", "gemma 3": "<end_of_turn>", "olmo 2": "<|endoftext|>"}


@pytest.mark.parametrize("name", ENDS)
def test_question_answer_and_end_are_the_beginning_of_the_whole_dialogue(name: str, tmp_path: Path):
    write_chat_folder(name, tmp_path / "folder")
    language = read_tokenizer(tmp_path / "folder")
    assert language is not None
    tokens = LanguageTokens(define(language, chat=True))
    assert tokens.eot_id is not None and tokens.eot_id == special_id(language, ENDS[name])
    for question, answer in (("what colour?", "red"), ("is it\na circle ", "two shapes")):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        whole = language.encode(language.render_chat(turns), special=False)
        (asked,) = tokens.token_ids([question], limit=99)
        row = [*asked, *tokens.reply_ids(answer), tokens.eot_id]
        assert row == whole[: len(row)]
        assert tokens.text(row[len(asked) :]) == answer
    again = pickle.loads(pickle.dumps(tokens))
    assert again.token_ids(["what?"], limit=99) == tokens.token_ids(["what?"], limit=99)


def test_a_template_that_tells_the_date_gives_the_same_ids_tomorrow(tmp_path: Path):
    write_chat_folder("llama 3.1", tmp_path / "folder")
    language = read_tokenizer(tmp_path / "folder")
    assert language is not None
    tokens = LanguageTokens(define(language, chat=True))
    (ids,) = tokens.token_ids(["what?"], limit=999)
    assert "26 Jul 2024" in tokens.text(ids)
    assert "26 Jul 2024" not in language.render_chat([{"role": "user", "content": "what?"}])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CHATS)
def test_5000_drawn_dialogues_have_transformers_ids(name: str, tmp_path: Path):
    write_chat_folder(name, tmp_path / "folder")
    check_dialogues(tmp_path / "folder", range(1000, 6000))
