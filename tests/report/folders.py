"""Synthetic run folders of real small pictures."""

import json
from pathlib import Path
from typing import Any

from mmtrain.eval import EvalResult, write_result
from mmtrain.eval.result import Example, thumbnail
from tests.data.shard_files import picture

RECALLS = {f"{way}_recall@{k}": k / 20 for way in ("i2t", "t2i") for k in (1, 5, 10)}


def make_example(number: int, *, text: str = "a red fox", right: bool = True) -> Example:
    return Example(
        key=f"key-{number}",
        text=text,
        predicted=text if right else "a grey wolf",
        rank=1 if right else 7,
        num_candidates=1200,
        picture=thumbnail(picture((40, 30), seed=number)),
    )


def write_metrics(path: Path, num_steps: int, *, start_loss: float = 5.0) -> None:
    """A line a step, in the form that training writes."""
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(1, num_steps + 1):
            row: dict[str, Any] = {
                "step": step,
                "epoch": step // 10,
                "samples_seen": step * 32,
                "loss": start_loss / (1 + step / num_steps),
                "lr": 1e-3 * step / num_steps,
                "grad_norm": 1.5,
                "logit_scale": 14.3,
                "samples_per_second": 300.0 + step % 3,
                "data_wait_fraction": 0.02,
            }
            file.write(json.dumps(row) + "\n")


def make_run(
    path: Path,
    *,
    num_steps: int = 40,
    top1: float = 0.25,
    text: str = "a red fox",
    lr: str = "1e-3",
) -> Path:
    """A whole run folder: zero-shot at two steps, retrieval, pictures, bad samples."""
    path.mkdir(parents=True)
    write_metrics(path, num_steps)
    (path / "recipe.toml").write_text(f'[run]\ndir = "x"\nseed = 1\n[optim]\nlr = {lr}\n')
    facts = {"versions": {"torch": "2.14.1"}, "commit": "abc", "data": {"fingerprint": "f00d"}}
    (path / "run.json").write_text(json.dumps(facts))
    best = [make_example(number, text=text) for number in range(10)]
    worst = [make_example(10 + number, text=text, right=False) for number in range(10)]
    figures: dict[str, Any] = {
        "top1": top1 / 2,
        "top5": top1 * 2,
        "num_samples": 60,
        "num_classes": 8,
        "templates": "simple",
        "data_fingerprint": "beef",
        "confusions": [{"name": text, "predicted": "a grey wolf", "count": 3}],
    }
    for step, value in ((num_steps // 2, top1 / 2), (num_steps, top1)):
        result = EvalResult(figures=figures | {"top1": value}, best=best, worst=worst)
        write_result(path / "eval" / "held-out.json", result, step=step)
    figures = RECALLS | {"num_images": 70, "num_texts": 90, "num_samples": 70}
    write_result(path / "eval" / "pairs.json", EvalResult(figures=figures, best=[], worst=[]))
    bad = {"step": 3, "key": "0007", "shard": "a.tar", "reason": "image truncated", "position": 5}
    (path / "bad_samples.jsonl").write_text(json.dumps(bad) + "\n")
    return path
