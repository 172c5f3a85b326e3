"""GQA's figures against a second transcription of the published definitions, and a pinned table."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from tests.data.questions.gqa_files import draw_gqa, write_gqa

NAMES = ("binary", "open", "consistency", "validity", "plausibility", "distribution")


def published(content: dict[str, Any]) -> dict[str, Any]:
    """The figures by their definitions, from the raw files; fractions but the distribution."""
    questions, choices = content["questions"], content["choices"]
    said = {row["questionId"]: row["prediction"] for row in content["predictions"]}
    right = {key: said[key] == row["answer"] for key, row in questions.items()}
    balanced = {key: row for key, row in questions.items() if row["isBalanced"]}
    binary, opened, valid, plausible, consistent = [], [], [], [], []
    words: dict[str, list[bool]] = {}
    steps: dict[str, list[bool]] = {}
    gold: dict[str, dict[str, int]] = {}
    seen: dict[str, dict[str, int]] = {}
    for key, row in balanced.items():
        (opened if row["types"]["structural"] == "query" else binary).append(right[key])
        words.setdefault(str(len(row["question"].split())), []).append(right[key])
        operations = [f"{one['operation']}: {one['argument']}" for one in row["semantic"]]
        counted = [
            one
            for one in operations
            if "exist" not in one and "query: name" not in one and "choose name" not in one
        ]
        steps.setdefault(str(len(counted)), []).append(right[key])
        common = ["color", "material", "shape"] if "Common" in row["types"]["detailed"] else None
        valid.append(said[key] in (common or choices[key]["valid"]))
        plausible.append(said[key] in (common or choices[key]["plausible"]))
        group = row["groups"]["global"]
        if group is not None:
            gold.setdefault(group, {}).setdefault(row["answer"], 0)
            gold[group][row["answer"]] += 1
            seen.setdefault(group, {}).setdefault(said[key], 0)
            seen[group][said[key]] += 1
        follows = [other for other in row["entailed"] if other != key]
        if right[key] and len(follows) > 0:
            consistent.append(average([right[other] for other in follows]))
    chi, size = 0.0, 0
    for group, counts in gold.items():
        distance = 0.0
        for answer, expected in counts.items():
            observed = seen[group].get(answer, 0)
            distance += (observed - expected) * (observed - expected) / expected
        number = sum(counts.values())
        chi += distance * number
        size += number
    return {
        "accuracy": average([right[key] for key in balanced]),
        "gqa_binary": average(binary),
        "gqa_open": average(opened),
        "gqa_consistency": average(consistent),
        "gqa_validity": average(valid),
        "gqa_plausibility": average(plausible),
        "gqa_distribution": chi / size / 100,
        "per_num_words": {key: average(some) for key, some in words.items()},
        "per_num_steps": {key: average(some) for key, some in steps.items()},
    }


def average(values: list[Any]) -> float:
    return sum(values) / len(values) if values else 0.0


def judge(folder: Path, content: dict[str, Any], *more: str) -> dict[str, Any]:
    out = folder / "out.json"
    words = write_gqa(folder, content)
    assert main(["eval", "answers", *words, *more, "--out", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("seed", range(40))
def test_a_second_transcription_never_differs(tmp_path: Path, seed: int):
    """60 questions each: all figures, of questions of every type, alike to the last bits."""
    content = draw_gqa(seed)
    found, wanted = judge(tmp_path, content), published(content)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
    kinds = {row["types"]["structural"] for row in content["questions"].values()}
    assert found["per_question_type"].keys() <= kinds and "left_out" not in found


def question(answer: str, structural: str, **changes: Any) -> dict[str, Any]:
    types = {"structural": structural, "semantic": "attr", "detailed": changes.pop("detailed", "x")}
    return {
        "question": "what is this?",
        "answer": answer,
        "imageId": "1",
        "isBalanced": True,
        "entailed": [],
        "groups": {"global": "colour"},
        "types": types,
    } | changes


TABLE = {
    "questions": {
        "1": question("red", "query", entailed=["1", "2", "5"]),
        "2": question("yes", "verify", groups={"global": None}),
        "3": question("red", "query"),
        "4": question("blue", "choose", detailed="twoCommon"),
        "5": question("no", "logical", isBalanced=False),
        "6": question("t-shirt", "compare", groups={"global": None}, entailed=["6"]),
    },
    "choices": {
        key: {"valid": ["red", "blue", "yes"], "plausible": ["red", "color"]} for key in "123456"
    },
    "predictions": [
        {"questionId": "1", "prediction": "red"},  # right
        {"questionId": "2", "prediction": "yes"},  # right
        {"questionId": "3", "prediction": "blue"},
        {"questionId": "4", "prediction": "color"},  # Common: valid and plausible
        {"questionId": "5", "prediction": "yes"},  # wrong, and follows from 1
        {"questionId": "6", "prediction": "t shirt"},  # as written: wrong
    ],
}


def test_the_pinned_table(tmp_path: Path):
    found = judge(tmp_path, TABLE)
    wanted = {
        "accuracy": 2 / 5,
        "gqa_binary": 1 / 3,  # 2, 4 and 6: whatever is no `query`
        "gqa_open": 1 / 2,
        "gqa_consistency": 1 / 2,  # of 1 follow 2, which is right, and 5, which is not
        "gqa_validity": 4 / 5,
        "gqa_plausibility": 2 / 5,
        # Group colour: red twice, said once; blue once, said once.
        "gqa_distribution": (1 / 2 + 0) * 3 / 3 / 100,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert (found["mode"], found["num_questions"], found["num_images"]) == ("gqa", 5, 1)
    assert found["per_question_type"] == {"choose": 0, "compare": 0, "query": 0.5, "verify": 1}


def test_balanced_answers_alone_leave_consistency_out(tmp_path: Path, capsys):
    """As the published evaluation without its --consistency: nothing else changes."""
    content = draw_gqa(3)
    balanced = {key for key, row in content["questions"].items() if row["isBalanced"]}
    some = [row for row in content["predictions"] if row["questionId"] in balanced]
    found = judge(tmp_path, content | {"predictions": some})
    wanted = published(content)
    assert "gqa_consistency" not in found and "not answered" in found["left_out"]["gqa_consistency"]
    assert "gqa_consistency          left out: question" in capsys.readouterr().out
    for name in wanted.keys() - {"gqa_consistency"}:
        assert found[name] == pytest.approx(wanted[name]), name


def test_what_the_files_do_not_suffice_for_is_told(tmp_path: Path):
    content = {name: TABLE[name] for name in ("questions", "predictions")}
    found = judge(tmp_path, content)
    assert found["left_out"].keys() == {"gqa_validity", "gqa_plausibility"}
    bare = {
        key: {name: row[name] for name in ("question", "answer", "imageId", "isBalanced")}
        for key, row in TABLE["questions"].items()
    }
    found = judge(tmp_path, content | {"questions": bare})
    assert found["left_out"].keys() == {f"gqa_{name}" for name in NAMES}
    assert found["accuracy"] == 2 / 5


def drop(content: dict[str, Any], name: str) -> None:
    for key in ("1", "3"):
        del content["questions"][key][name]


def none_balanced(content: dict[str, Any]) -> None:
    for row in content["questions"].values():
        row["isBalanced"] = False


MISTAKES = {
    "some silent": (
        lambda c: drop(c, "isBalanced"),
        "2 of 6 do not say isBalanced, the first is 1",
    ),
    "none balanced": (none_balanced, "none isBalanced"),
    "no answers": (lambda c: drop(c, "answer"), "2 of 6 questions have no answers"),
    "no choice": (
        lambda c: c["choices"].pop("4"),
        "choices: 1 of 5 balanced questions have none, the first is 4",
    ),
    "no choices": (lambda c: c.update(choices={"4": ["red"]}), "name GQA's choices file"),
    "isBalanced": (lambda c: c["questions"]["2"].update(isBalanced="no"), "neither true nor false"),
    "types": (lambda c: c["questions"]["2"].update(types="query"), "question 2: types = 'query'"),
    "steps": (lambda c: c["questions"]["2"].update(semantic=["x"]), "question 2: its semantic"),
    "answer": (lambda c: c["questions"]["2"].update(answer=2), "answer = 2 is no text"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line(tmp_path: Path, capsys, what: str):
    content = json.loads(json.dumps(TABLE))
    edit, told = MISTAKES[what]
    edit(content)
    words = write_gqa(tmp_path, content)
    assert main(["eval", "answers", *words, "--out", str(tmp_path / "out.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and not (tmp_path / "out.json").exists()


def test_a_mode_that_cannot_matter_is_refused(tmp_path: Path, capsys):
    words = [*write_gqa(tmp_path, TABLE), "--out", str(tmp_path / "out.json")]
    assert main(["eval", "answers", *words, "--mode", "evalai"]) == 2
    assert "mode = evalai is for several annotators" in capsys.readouterr().err
