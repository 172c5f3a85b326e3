"""`mmtrain generate` and `mmtrain summary` on a decoder's folder."""

import re

import pytest
import torch

import mmtrain
from mmtrain.cli import main
from mmtrain.data.text.language_tokenizer import LanguageTokenizer
from mmtrain.errors import UsageError
from tests.interop.decoder_folders import edit_config, write_peer, write_worded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder")
    write_worded(path)
    return path


def run(capsys, *words: str) -> str:
    assert main(["generate", *words]) == 0
    return capsys.readouterr().out


def test_one_prompt_streams_and_several_are_one_batch(folder, capsys):
    model = ("--model", str(folder), "--max-new-tokens", "5", "--device", "cpu")
    alone = [run(capsys, *model, "--prompt", p) for p in ("a red circle", "two")]
    both = run(capsys, *model, "--prompt", "a red circle", "--prompt", "two").splitlines()
    assert [line.split() for line in both] == [
        ["a", "red", "circle", *alone[0].split()],
        ["two", *alone[1].split()],
    ]
    assert len(alone[0].split()) == 5
    beams = run(capsys, *model, "--prompt", "two", "--num-beams", "3")
    assert beams.startswith("two")
    chat = run(capsys, *model, "--prompt", "two", "--chat")
    decoder, tokenizer = mmtrain.load_decoder(folder)
    assert tokenizer.encode_chat([{"role": "user", "content": "two"}]) == [0, 7, 1]
    assert chat and decoder.config.vocab_size == 50


def test_a_text_that_was_cut_is_told(folder, capsys, monkeypatch):
    """Beside the text; not of one whose end token came, nor where there is none."""
    words = ["generate", "--model", str(folder), "--max-new-tokens", "5", "--device", "cpu"]
    one, two = ["--prompt", "a red circle"], ["--prompt", "two"]
    for prompts, told in ((one, "the text is"), (one + two, "2 of 2 texts are")):
        assert main([*words, *prompts]) == 0
        said = capsys.readouterr()
        assert said.err.startswith(f"{told} cut off after 5 tokens") and "cut" not in said.out
    assert main([*words, *one, *two, "--num-beams", "2"]) == 0
    assert capsys.readouterr().err.startswith("2 of 2 texts are cut off")
    made = LanguageTokenizer.__init__
    for ends in ((), tuple(range(50))):

        def ending(self, *inputs, ends=ends, **named):
            made(self, *inputs, **named)
            self.end_ids = ends

        monkeypatch.setattr(LanguageTokenizer, "__init__", ending)
        assert main([*words, *one]) == 0
        assert capsys.readouterr().err == ""


def test_draws_repeat_by_their_seed(folder, capsys):
    model = ("--model", str(folder), "--prompt", "a", "--temperature", "2", "--top-k", "20")
    texts = [run(capsys, *model, "--seed", seed) for seed in "0012"]
    assert texts[0] == texts[1] and len(set(texts)) == 3


def test_answers_of_a_list_with_their_probabilities(folder, tmp_path, capsys):
    answers = tmp_path / "answers.txt"
    answers.write_text("red\nred circle\nblue\n\ntwo\n")
    out = run(capsys, "--model", str(folder), "--prompt", "a", "--answers", str(answers))
    rows = re.findall(r"^ +([\d.]+)% +(-[\d.]+)  (.+)$", out, re.MULTILINE)
    assert {text for *_, text in rows} == {"red", "red circle", "blue", "two"}
    assert sum(float(share) for share, *_ in rows) == pytest.approx(100, abs=0.3)
    assert [float(log_p) for _, log_p, _ in rows] == sorted(
        (float(log_p) for _, log_p, _ in rows), reverse=True
    )


@pytest.mark.parametrize("num", [1, 60, 80, 84, 85, 86, 88, 90, 700])
def test_any_number_of_answers(folder, tmp_path, capsys, num):
    """Sorted as one by one; a line that is there twice is one answer."""
    words = [f"w{number}" for number in range(42)]
    listed = [*words, *(f"{a} {b}" for a in words for b in words[:17])][:num]
    answers = tmp_path / "answers.txt"
    answers.write_text("\n".join([*listed, listed[0]]))
    out = run(capsys, "--model", str(folder), "--prompt", "a red", "--answers", str(answers))
    rows = re.findall(r"^ +([\d.]+)% +(-[\d.]+)  (.+)$", out, re.MULTILINE)
    assert len({text for *_, text in rows}) == len(rows) == min(5, num)
    decoder, tokenizer = mmtrain.load_decoder(folder)
    for _, log_p, text in rows:
        prompt = tokenizer.encode("a red")
        ids = [*tokenizer.encode(f" {text}", special=False), *tokenizer.end_ids[:1]]
        shares = decoder(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = shares[torch.arange(len(ids)), torch.tensor(ids)].sum().item()
        assert float(log_p) == pytest.approx(wanted, abs=2e-3)


def test_an_answer_that_cannot_fit_is_one_line(folder, tmp_path, capsys):
    """61 words and the end token, which is not read, fill the context of 64 behind two."""
    answers = tmp_path / "answers.txt"
    answers.write_text("red\n" + "blue " * 62)
    words = ["--model", str(folder), "--prompt", "a red", "--answers", str(answers)]
    assert "red" in run(capsys, *words)
    answers.write_text("red\n" + "blue " * 63)
    assert main(["generate", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a prompt of 2 tokens and the answer 'blue blue" in line and "of 64 exceed" in line
    assert "context_length = 64; shorten one of them" in line and len(line) < 300


def test_summary_tells_a_decoders_parts(folder, capsys):
    assert main(["summary", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "4 (2 kv) heads of 4" in out and "50 ids, at most 64 tokens" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-k", "5"], "top_k and top_p choose what is drawn from: set temperature above 0"),
        (["--max-new-tokens", "64"], "exceed context_length = 64"),
        (["--answers", "no.txt"], "answers = no.txt cannot be read"),
        (["--prompt", ""], 'prompt = "" has no token'),
    ],
)
def test_mistakes_are_one_line(words, message, folder, capsys):
    assert main(["generate", "--model", str(folder), "--prompt", "a", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mmtrain: error: ") and message in line


def test_another_kind_of_model_is_one_line(folder, tmp_path, capsys):
    write_peer("smollm2", tmp_path)
    assert main(["generate", "--model", str(tmp_path), "--prompt", "a"]) == 2
    assert "holds no tokenizer" in capsys.readouterr().err
    edit_config(tmp_path, model_type="mamba")
    assert main(["generate", "--model", str(tmp_path), "--prompt", "a"]) == 2
    assert 'model_type = "mamba" is no decoder that we read' in capsys.readouterr().err
    with pytest.raises(UsageError, match="is no CLIP: it holds a decoder"):
        mmtrain.load(folder)
