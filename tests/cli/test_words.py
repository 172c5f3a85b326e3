"""Words that no command takes: what they were meant to be."""

from pathlib import Path

import pytest

from mmtrain.cli import build_parser, main
from mmtrain.cli.words import in_words_of
from tests.mistakes import mistake

RECIPE = "configs/debug_clip.toml"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # an unquoted glob
        (("--data.train", "a.tar", "b.tar"), "--data.train takes one value, which is a.tar;"),
        (("--data.train", "a.tar", "b.tar", "c.tar"), "quote it: --data.train '*.tar'"),
        (("--data.train=a.tar", "b.tar"), "--data.train takes one value, which is a.tar;"),
        (("--run-dir", "runs/a", "runs/b"), "--run-dir takes one value, which is runs/a;"),
        (("other.toml",), "it takes one RECIPE; give them one at a time"),
        (("--resume", "now"), "--resume takes no value"),
        # a section or key alone
        (("--loss", "siglip"), "did you mean --loss.kind siglip?"),
        (("--loss=sigmoid",), "did you mean --loss.kind siglip?"),
        (("--optim", "adam"), "did you mean --optim.kind adamw?"),
        (("--patch_size", "8"), "did you mean --model.vision.patch_size?"),
        (("--batch-size", "8"), "did you mean --train.batch_size or --eval.batch_size?"),
        (("--nothing", "8"), "keys of a recipe have a section"),
        # dashes
        (("-train.steps", "3"), "did you mean --train.steps?"),
        (("-run-dir", "x"), "did you mean --run-dir?"),
        (("—train.steps", "3"), "type --train.steps"),
        (("–-train.steps=3",), "type --train.steps=3"),
        (("—run-dir", "x"), "type --run-dir"),
        (("−−resume",), "type --resume"),
        # spaces and quotation marks
        (("--train.steps", "=", "3"), "write --train.steps=3 without spaces"),
        (("--run.dir", "“x”"), "begins with “"),
        (("--run.dir=«x»",), "begins with «"),
        # others' words
        (("--train.precision", "bfloat16"), 'did you mean "bf16"?'),
        (("--optim.learning_rate", "1"), "did you mean optim.lr?"),
        (("--train.num_workers", "1"), "did you mean data.workers?"),
        (("--data.label_key", "None"), 'write "none" for none'),
        (("--optim.clip_norm", "null"), 'write "none" for none'),
        (("--train.compile", "yes"), "did you mean true? use true | false | auto"),
        (("--train.async_checkpoint", "yes"), "write async_checkpoint = true"),
        (("--optim.lr", "0,001"), "decimals follow a point"),
        (("--eval.zero_shot", "x"), "write eval.zero_shot[0].name = ..."),
        (("--optim.lr", "1e400"), "must be a finite number that fp32 can hold"),
        (("--optim.lr", "1e39"), "must be a finite number that fp32 can hold"),
        (("--train.steps", "9" * 30), "must be an int of at most 64 bits"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_words_of_train(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert told in mistake(capsys, "train", RECIPE, *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("export", "runs/a", "runs/b", "--out", "x"), "it takes one RUN; give them one at a time"),
        (("export", "a", "--out", "x", "--format", "open_clip"), "did you mean open-clip?"),
        (("embed", "--model", "a", "b", "--data", "x", "--out", "y"), "--model takes one value"),
        (("models", "--train.steps", "3"), "keys of a recipe are for train, plan and demo"),
        (("report", "a", "—out", "x"), "type --out"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_words_of_other_commands(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert told in mistake(capsys, *words)


def test_a_place_that_no_sample_has_is_told_what_they_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not "mend such samples": the name is wrong, not the samples."""
    shard, classes = "mmtrain/demo/debug/train.tar", "mmtrain/demo/debug/classes.json"
    run = str(tmp_path / "run")
    assert main(["train", RECIPE, "--run-dir", run, "--train.steps", "1"]) == 0
    given = ("--model", run, "--data", shard, "--out", str(tmp_path / "out.json"))
    line = mistake(capsys, "eval", "retrieval", *given, "--captions", "caption")
    assert "it has concept, emoji, name," in line
    assert "name a place with --captions, in a recipe captions" in line and "mend" not in line
    line = mistake(capsys, "eval", "zero-shot", *given, "--classes", classes, "--label-key", "x")
    assert "name a place with --label-key, in a recipe label_key" in line and "mend" not in line


def test_keys_of_a_recipe_are_options_where_the_user_typed_those() -> None:
    arguments = build_parser().parse_args(["models"])
    assert in_words_of(arguments, "data.workers = 3") == "data.workers = 3"  # it has no such option
    words = ["embed", "--model", "a", "--data", "b", "--out", "c"]
    arguments = build_parser().parse_args(words)
    told = in_words_of(arguments, "data.workers = 3 and train.device = x; see data.train")
    assert told == "--workers = 3 and --device = x; see data.train"


def test_a_key_within_another_stays_as_it_is() -> None:
    parser = build_parser()
    words = ["eval", "vqa", "--model", "m", "--data", "d", "--questions", "q", "--out", "o.json"]
    arguments, _ = parser.parse_known_args(words)
    told = in_words_of(arguments, "name them (--annotations, vqa.data.annotations); data.workers")
    assert told == "name them (--annotations, vqa.data.annotations); --workers"


def test_an_option_that_is_named_as_it_is_typed_stays_so() -> None:
    arguments = build_parser().parse_args(["demo", "--out", "o"])
    told = in_words_of(arguments, "--out = o, out = o and eval.out = o")
    assert told == "--out = o, --out = o and eval.out = o"
