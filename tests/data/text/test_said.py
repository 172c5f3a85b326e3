"""What the assistant says in a conversation, against transformers' masks and a rendering of each
beginning of it."""

import json
import random
from pathlib import Path

import pytest

from mmtrain.data.dialogues.dialogue import IMAGE
from mmtrain.data.text.language_tokenizer import LanguageTokenizer
from mmtrain.data.text.language_tokens import LanguageTokens, define
from mmtrain.data.text.said import SaidToken, said_tokens
from mmtrain.errors import UsageError
from mmtrain.interop.hf_decoder_files import read_tokenizer
from tests.data.text.chat_templates import CHATS, Dialogue, draw_dialogue, write_chat_folder

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def draw_turns(seed: int) -> Dialogue:
    """A dialogue that ends with an answer, now and then images in what is asked."""
    draw = random.Random(seed)
    turns = draw_dialogue(seed)
    while turns[-1]["role"] != "assistant" or (len(turns) > 1 and turns[-1] == turns[-2]):
        turns = turns[:-1] or [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
    for turn in turns:
        if turn["role"] == "assistant" and not turn["content"].strip():
            turn["content"] = "red"
        if turn["role"] == "user" and draw.random() < 0.4:
            turn["content"] = f"{IMAGE}\n{turn['content']}"
    return turns


def read_both(folder: Path):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_special_tokens({"additional_special_tokens": [IMAGE]})
    language = read_tokenizer(folder)
    assert language is not None
    return theirs, LanguageTokens(define(language, chat=True))


def by_beginnings(theirs, turns: Dialogue, end_id: int) -> list[bool] | None:
    """What each answer adds to the beginning of the dialogue before it, by transformers alone;
    None where a template writes a beginning otherwise than the whole."""
    whole = theirs.apply_chat_template(turns, return_dict=False)
    mask = [False] * len(whole)
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        asked = theirs.apply_chat_template(
            turns[:number], add_generation_prompt=True, return_dict=False
        )
        done = theirs.apply_chat_template(turns[: number + 1], return_dict=False)
        if whole[: len(asked)] != asked or done[: len(asked)] != asked:
            return None
        last = max(place for place, token in enumerate(done) if token == end_id)
        if whole[: last + 1] != done[: last + 1] or last < len(asked):
            return None
        mask[len(asked) : last + 1] = [True] * (last + 1 - len(asked))
    return mask


def said(ours: LanguageTokens, turns: Dialogue) -> list[SaidToken]:
    """On the day of today, as transformers tells it in templates that say the date."""
    language = LanguageTokenizer.restore(json.loads(ours.serialize())["language"])
    assert ours.eot_id is not None
    return said_tokens(language, turns, mark=IMAGE, end_id=ours.eot_id)


def compare(ours: LanguageTokens, theirs, turns: Dialogue, want: list[bool] | None) -> bool:
    """Ids always; what is said where the reference knows -> whether it does."""
    found = said(ours, turns)
    ids = theirs.apply_chat_template(turns, return_dict=False)
    marked = theirs.convert_tokens_to_ids(IMAGE)
    assert [marked if token is None else token for token, _ in found] == ids
    if want is None:
        return False
    assert [is_said for _, is_said in found] == want, turns
    return True


def check_dialogues(name: str, folder: Path, seeds: range) -> None:
    import jinja2

    theirs, ours = read_both(folder)
    assert ours.eot_id is not None
    known = seen = 0
    for seed in seeds:
        turns = draw_turns(seed)
        try:
            want = by_beginnings(theirs, turns, ours.eot_id)
        except jinja2.TemplateError:
            with pytest.raises(UsageError, match="chat template: "):
                said(ours, turns)
            continue
        seen += 1
        known += compare(ours, theirs, turns, want)
    assert known > (0.2 if name == "qwen3" else 0.6) * seen > 0, (known, seen)


@pytest.mark.parametrize("name", CHATS)
def test_drawn_dialogues_have_transformers_ids_and_said_tokens(name: str, tmp_path: Path):
    write_chat_folder(name, tmp_path / "folder")
    check_dialogues(name, tmp_path / "folder", range(80))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHATS)
def test_5000_dialogues(name: str, tmp_path: Path):
    write_chat_folder(name, tmp_path / "folder")
    check_dialogues(name, tmp_path / "folder", range(100, 725))


def test_a_template_that_marks_what_is_said_is_taken_at_its_word(tmp_path: Path):
    write_chat_folder("smollm2", tmp_path / "folder")
    path = tmp_path / "folder/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": MARKED}))
    theirs, ours = read_both(tmp_path / "folder")
    for seed in range(80):
        turns = draw_turns(seed)
        mask = theirs.apply_chat_template(
            turns, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]
        assert compare(ours, theirs, turns, [bool(one) for one in mask])


@pytest.mark.parametrize("name", ["smollm2", "gemma 2", "olmo 2"])
def test_special_tokens_that_an_answer_spells_do_not_end_it(name: str, tmp_path: Path):
    write_chat_folder(name, tmp_path / "folder")
    _, ours = read_both(tmp_path / "folder")
    end = CHATS[name][2] if name != "gemma 2" else "<end_of_turn>"
    turns = [
        {"role": "user", "content": f"a {end} b"},
        {"role": "assistant", "content": f"red {end} blue"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "green"},
    ]
    learnt = [token for token, is_said in said(ours, turns) if is_said]
    assert learnt.count(ours.eot_id) == 3
    words = ours.text([token for token in learnt if token is not None])
    assert "".join(words.split()) == "redbluegreen"


@pytest.mark.parametrize("name", CHATS)
def test_lone_surrogates_are_the_replacement_character(name: str, tmp_path: Path):
    write_chat_folder(name, tmp_path / "folder")
    _, ours = read_both(tmp_path / "folder")

    def turns(odd: str) -> Dialogue:
        asked = {"role": "user", "content": f"{IMAGE}what{odd} is it"}
        return [asked, {"role": "assistant", "content": f"a {odd}red{odd} one"}]

    assert said(ours, turns("\ud83d")) == said(ours, turns("\udcff")) == said(ours, turns("\ufffd"))
