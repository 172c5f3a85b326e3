"""A run whose decoder starts from a folder of transformers': shape, tokenizer, weights, export."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main
from mmtrain.loading.vqa import load_vqa
from mmtrain.nn import TransformerConfig
from mmtrain.tasks.config import GenerateSection
from tests.tasks.decoder_starts import CHATML, started_recipe, write_decoder
from tests.tasks.test_vqa_run import ROOT, build, losses

DOC = ROOT / "docs/vqa.md"


@pytest.mark.parametrize(
    ("name", "chat"),
    [
        ("smollm2", CHATML),
        ("gpt2", CHATML),
        ("gemma3", None),
        pytest.param("qwen3", None, marks=pytest.mark.slow),
        pytest.param("olmo2", CHATML, marks=pytest.mark.slow),
    ],
)
def test_a_run_starts_from_a_decoder_and_gives_it_back(
    name: str, chat: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import transformers

    folder = write_decoder(tmp_path / "decoder", name, chat=chat)
    path = started_recipe(tmp_path, folder, transformer={"mask": "prefix"})
    run = build(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = run.task.model.generate.decoder
    tokens_BT = torch.randint(320, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = theirs(tokens_BT).logits
        got = ours.eval()(tokens_BT, prefix_length_B=torch.tensor([0, 0]))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    batch = run.data.batch(0)
    ids = batch.tokens_QT[0, : batch.question_length_Q[0]].tolist()
    question = batch.row_texts(run.data.text.tokenizer.decode)[0].split(" | ")[0]
    if chat is not None:
        asked = next(q for q in json.loads((tmp_path / "questions.json").read_text())["questions"])
        turn = [{"role": "user", "content": asked["question"]}]
        assert run.data.text.tokenizer.encode([asked["question"]])[0][0].tolist() == list(
            tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        )
    else:
        assert ids == tokenizer(question)["input_ids"]
    answer = batch.tokens_QT[0, batch.question_length_Q[0] : batch.length_Q[0]].tolist()
    assert answer[-1] == tokenizer.eos_token_id

    assert main(["train", str(path), "--train.steps", "4", "--run-dir", str(tmp_path / "run")]) == 0
    saved = load_vqa(tmp_path / "run")
    assert not torch.equal(
        saved.model.generate.decoder.state_dict()["transformer.blocks.0.attention.q.weight"],
        run.task.model.state_dict()["generate.decoder.transformer.blocks.0.attention.q.weight"],
    )
    words = ["export", str(tmp_path / "run"), "--format", "hf-decoder"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(again) is type(theirs)
    with torch.no_grad():
        got = saved.model.generate.decoder(tokens_BT, prefix_length_B=torch.tensor([0, 0]))
        torch.testing.assert_close(got, again(tokens_BT).logits, atol=1e-4, rtol=0)
    back = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert back("is there a circle?")["input_ids"] == tokenizer("is there a circle?")["input_ids"]
    assert again.config.eos_token_id == theirs.config.eos_token_id


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a decoder of Llama's form that chats, and a recipe that starts from it."""
    folder = tmp_path_factory.mktemp("started")
    started_recipe(folder, write_decoder(folder / "decoder", chat=CHATML))
    return folder


def test_it_resumes_to_the_last_bit_is_asked_and_evaluated(
    started: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe, one, two = str(started / "recipe.toml"), tmp_path / "one", tmp_path / "two"
    assert main(["train", recipe, "--run-dir", str(one)]) == 0
    shutil.copytree(one, two)
    shutil.rmtree(two / "checkpoints/step-00000006")
    assert main(["train", str(two), "--resume"]) == 0
    assert losses(two) == losses(one)
    ours, theirs = (load_vqa(run).model.state_dict() for run in (one, two))
    assert all(torch.equal(ours[name], x) for name, x in theirs.items())
    recorded = tomllib.loads((one / "recipe.toml").read_text())["vqa"]["generate"]
    assert recorded["transformer"]["dim"] == 16 and recorded["vocab_size"] == 320
    image = str(next((started / "images").glob("*")))
    capsys.readouterr()
    assert main(["ask", "--model", str(one), "--image", image, "--question", "what is it?"]) == 0
    assert capsys.readouterr().out.strip()
    for words in (["summary", recipe], ["plan", recipe, "--world-size", "1"]):
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert "generate.decoder.transformer.blocks" in shown
    total = sum(p.numel() for p in load_vqa(one).model.parameters())
    assert f"recipe.toml: {total:,} parameters" in shown
    # A second stage takes all weights, and of the decoder's folder shape and tokenizer alone.
    words = ["--vqa.init", str(one), "--run-dir", str(tmp_path / "three"), "--train.steps", "1"]
    assert main(["train", recipe, *words]) == 0
    assert "only shape and tokenizer" in capsys.readouterr().err
    weights = load_vqa(one).model.state_dict()
    started_from = build(started / "recipe.toml", "--vqa.init", str(one)).task.model.state_dict()
    assert all(torch.equal(weights[name], x) for name, x in started_from.items())


@pytest.mark.parametrize("also", [[], ["--peft.also_train", '["generate.connector.*"]']])
def test_an_adapter_trains_on_it(
    also: list[str], started: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["train", str(started / "recipe.toml"), "--run-dir", str(tmp_path / "run")]
    words += ["--peft.kind", "lora", "--peft.targets", '["generate.decoder.*.attention.*"]', *also]
    before = build(started / "recipe.toml").task.model.state_dict()
    if not also:
        assert main(words) == 2
        assert 'set peft.also_train = ["generate.connector.*"]' in capsys.readouterr().err
        return
    assert main([*words, "--train.steps", "2"]) == 0
    after = load_vqa(tmp_path / "run").model.state_dict()
    moved = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert {name.split(".")[1] for name in moved} == {"connector", "decoder"}
    assert all(".attention." in name or ".connector." in name for name in moved)


MISTAKES = [
    (["--vqa.generate.transformer.dim", "32"], "vqa.generate.transformer.dim = 32, but", "has 16"),
    (["--vqa.generate.transformer.num_kv_heads", "4"], "num_kv_heads = 4, but", "has 2"),
    (["--vqa.generate.transformer.norm", "layer"], 'norm = "layer", but', 'has "rms"'),
    (["--vqa.generate.tied_head", "false"], "tied_head = false, but", "has true"),
    (["--vqa.generate.rope_theta", "7"], "rope_theta = 7.0, but", "has 10000"),
    (["--vqa.generate.vocab_size", "300"], "vocab_size = 300, but", "has 320"),
    (["--vqa.generate.transformer.init", "scaled"], 'init = "scaled", but', "leave it out"),
    (["--tokenizer.kind", "json"], 'tokenizer.kind = "json", but vqa.generate.init', "its own"),
    (["--tokenizer.context_length", "5"], "the chat template takes", "context_length = 5"),
    (["--tokenizer.context_length", "90"], "context_length = 96 holds no", "vqa.connector"),
    (["--vqa.generate.init", "nowhere"], "vqa.generate.init = nowhere does not exist", "name a"),
    (["--vqa.generate.init", "{clip}"], "vqa.generate.init = ", "is no decoder"),
    (["--vqa.connector.kind", "pixel_shuffle", "--vqa.connector.factor", "3"], "factor = 3", "2"),
    (["--vqa.generate.transfomer.dim", "32"], "transfomer", "did you mean"),
]


@pytest.mark.parametrize(("words", "named", "remedy"), MISTAKES, ids=lambda x: str(x)[:40])
def test_what_contradicts_the_folder_is_refused(
    words: list[str],
    named: str,
    remedy: str,
    started: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "config.json").write_text('{"model_type": "clip"}')
    given = [word.format(clip=clip) for word in words]
    run = ["train", str(started / "recipe.toml"), "--run-dir", str(tmp_path / "run"), *given]
    assert main(run) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert named in line and remedy in line
    assert not (tmp_path / "run").exists()


def test_a_folder_without_what_it_takes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_decoder(tmp_path / "decoder")
    path = started_recipe(tmp_path, folder)
    words = ["train", str(path), "--run-dir", str(tmp_path / "run")]
    assert main([*words, "--vqa.generate.chat", "true"]) == 2
    assert "has no chat template" in capsys.readouterr().err
    (folder / "tokenizer_config.json").write_text("{}")
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    assert main(words) == 2
    assert "names no end token" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    assert main(words) == 2
    assert "holds no tokenizer" in capsys.readouterr().err


def test_a_long_question_is_cut_and_not_the_template(started: Path):
    run = build(started / "recipe.toml", "--tokenizer.context_length", "30")
    tokenizer = run.data.text.tokenizer
    asked = ["what color is the shape? " * n for n in (0, 1, 2, 9)]
    rows, lengths = tokenizer.encode(asked)
    end = tokenizer.encode([""])[0][0].tolist()[-4:]
    assert lengths.max() <= 30 < 9 * 6
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        assert row[:length][-4:] == end


def test_the_document_makes_a_folder_that_its_recipe_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (code,) = re.findall(r"```python\n(from tokenizers.*?)```", DOC.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # the document's own
    words = ["train", str(ROOT / "configs/vqa_decoder.toml"), "--train.steps", "2"]
    assert main([*words, "--train.batch_size", "2"]) == 0
    generate = load_vqa(Path("runs/vqa_decoder")).model.config.generate
    assert generate is not None and generate.transformer.dim == 64


def test_a_chat_without_a_folder_is_refused():
    blocks = TransformerConfig(dim=8, num_layers=1, num_heads=1, mask="causal")
    with pytest.raises(ValueError, match="chat = true has no effect without init"):
        GenerateSection(transformer=blocks, chat=True)
