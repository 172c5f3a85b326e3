"""Synthetic run folders of real small pictures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmtrain.eval import EvalResult, write_result
from mmtrain.eval.look.look import Look, MapExample
from mmtrain.eval.look.pictures import draw_heat, draw_sheet, to_webp
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


def write_probes(run: Path) -> None:
    """What a linear probe and neighbours found, as their evaluations write it."""
    figures = {"top1": 0.41, "top5": 0.73, "mean_class_top1": 0.4, "num_samples": 60}
    figures |= {"num_classes": 8, "num_train": 1234}
    for name, more in (
        (
            "probe",
            {"method": "linear probe", "strength": 0.316, "tried": [{"strength": 0.316}] * 9},
        ),
        ("neighbours", {"method": "kNN", "neighbours": 20, "temperature": 0.07}),
    ):
        result = EvalResult(figures=figures | more, best=[], worst=[])
        write_result(run / "eval" / f"{name}.json", result)


def write_answers(run: Path) -> None:
    """What questions about images gave, as their evaluation writes it, at two steps."""
    figures: dict[str, Any] = {"accuracy": 0.875, "num_questions": 1600, "num_images": 200}
    figures |= {"question_only_accuracy": 0.629, "per_answer_type": {"other": 0.81, "yes/no": 0.93}}
    heat = draw_heat(picture((40, 30), seed=1), torch.rand(3, 3), low=0.0)
    sides = [
        [
            replace(make_example(number, right=right), attention=heat, remark=f"9{number} % sure")
            for number in range(2)
        ]
        for right in (True, False)
    ]
    for step in (20, 40):
        result = EvalResult(figures=figures, best=sides[0], worst=sides[1])
        write_result(run / "eval" / "answers.json", result, step=step)


def make_look(*, texts: int = 5) -> Look:
    """Five images: the first is right, the others' nearest text is the first."""
    pictures = [picture((40, 30), seed=number) for number in range(5)]
    plane = torch.arange(10.0).view(5, 2)
    heat = draw_heat(pictures[0], torch.rand(2, 3), low=0.0)
    return Look(
        num_samples=500,
        keys=[f"key-{number}" for number in range(5)],
        texts=[f"text {number}" for number in range(texts)],
        text_N=[min(number, texts - 1) for number in range(5)],
        nearest_N=[0] * 5,
        planes={name: (plane, plane[:texts] + 1) for name in ("pca", "tsne")},
        pca_share=0.283,
        sheet=draw_sheet(pictures),
        maps=[
            MapExample(
                key="key-0",
                text="text 0",
                cosine=0.3125,
                peak=0.0417,
                shares=(0.031, 0.127),
                grid=(2, 3),
                picture=to_webp(pictures[0]),
                text_map=heat,
                rollout=heat,
            )
        ],
    )


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
    facts: dict[str, Any] = {
        "versions": {"torch": "2.14.1"},
        "commit": "abc",
        "data": {"fingerprint": "f00d"},
    }
    facts["data"]["batches_per_epoch"] = 8
    facts["changed"] = {"at step 20": {"optim.lr": [1e-3, 5e-4]}}
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
        "mean_class_top1": top1 / 4,
        "confusions": [
            {
                "name": text,
                "predicted": "a grey wolf",
                "count": 3,
                "share": 0.375,
                "confidence": 0.613,
            }
        ],
        "calibration": {"scale": 16.0, "loss": 1.5, "expected_error": 0.042},
        "reliability": [
            {"count": 45, "confidence": 0.1, "top1": 0.2},
            {"count": 15, "confidence": 0.9, "top1": 0.8},
        ],
    }
    for step, value in ((num_steps // 2, top1 / 2), (num_steps, top1)):
        result = EvalResult(figures=figures | {"top1": value}, best=best, worst=worst)
        write_result(path / "eval" / "held-out.json", result, step=step)
    figures = RECALLS | {"num_images": 70, "num_texts": 90, "num_samples": 70}
    write_result(path / "eval" / "pairs.json", EvalResult(figures=figures, best=[], worst=[]))
    bad = {"step": 3, "key": "0007", "shard": "a.tar", "reason": "image truncated", "position": 5}
    (path / "bad_samples.jsonl").write_text(json.dumps(bad) + "\n")
    return path
