"""The published rules of further sets, written a second time from their scripts' behaviour."""

import re
from typing import Any

from mmtrain.data.questions.wording import CONTRACTIONS, normalize_answer

MARKS = [*';/[]"{}()=+\\_-><@`,?!']
COUNTED = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {word: str(number) for number, word in enumerate(COUNTED)} | {"none": "0"}


def text_vqa_words(answer: str) -> str:
    """The processor of answers that TextVQA's evaluation (M4C) has."""
    text = answer.lower()
    for old, new in ((",", ""), ("?", ""), ("'s", " 's")):
        text = text.replace(old, new)
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in MARKS:
        joined = mark + " " in text or " " + mark in text or re.search(r"(?<=\d)(,)+(?=\d)", text)
        out = out.replace(mark, "" if joined else " ")
    out = re.sub(r"(?!<=\d)(\.)(?!\d)", "", out, count=int(re.UNICODE))
    kept = [DIGITS.get(word, word) for word in out.lower().split()]
    kept = [word for word in kept if word not in ("a", "an", "the")]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def text_vqa_score(said: str, answers: list[str]) -> float:
    """What each answer that anybody gave is worth, looked up; others are worth nothing."""
    right = list(enumerate(text_vqa_words(answer) for answer in answers))
    worth = {}
    for unique in {answer for _, answer in right}:
        scores = []
        for one in right:
            others = [other for other in right if other != one]
            matching = [other for other in others if other[1] == unique]
            scores.append(min(1, float(len(matching)) / 3))
        worth[unique] = sum(scores) / len(scores)
    return worth.get(text_vqa_words(said), 0.0)


def pope_score(rows: list[tuple[str, str]]) -> dict[str, float]:
    """POPE's counts over (answer, label)."""
    counts = {"TP": 0, "FP": 0, "TN": 0, "FN": 0}
    for text, label in rows:
        if text.find(".") != -1:
            text = text.split(".")[0]
        words = text.replace(",", "").split(" ")
        positive = not ("No" in words or "not" in words or "no" in words)
        counts[("T" if positive == (label == "yes") else "F") + ("P" if positive else "N")] += 1
    tp, fp, tn, fn = counts.values()
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / len(rows),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": (tp + fp) / len(rows),
    }


def science_qa_scores(
    problems: dict[str, Any], pids: list[str], places: dict[str, int]
) -> dict[str, float]:
    """ScienceQA's table over the answers' places, by name."""
    rows = [problems[pid] | {"right": problems[pid]["answer"] == places[pid]} for pid in pids]
    younger = [f"grade{number}" for number in range(1, 7)]
    groups = {
        "NAT": [row for row in rows if row["subject"] == "natural science"],
        "SOC": [row for row in rows if row["subject"] == "social science"],
        "LAN": [row for row in rows if row["subject"] == "language science"],
        "TXT": [row for row in rows if row["hint"]],
        "IMG": [row for row in rows if row["image"]],
        "NO": [row for row in rows if not row["hint"] and not row["image"]],
        "G1-6": [row for row in rows if row["grade"] in younger],
        "G7-12": [row for row in rows if row["grade"] not in younger],
        "Avg": rows,
    }
    return {
        name: sum(row["right"] for row in some) / len(some) for name, some in groups.items() if some
    }


def letter_by_hand(answer: str, options: list[str]) -> str | None:
    """The reading of letters, character by character where the program has patterns."""
    said = answer.strip(" \t\r\n*\"'`")
    known = [chr(65 + number) for number in range(len(options))]

    def marked(text: str) -> tuple[str, str]:
        """The letter that a text begins with, and what follows it and its marks."""
        bare = text.removeprefix("(")
        return (bare[:1].upper(), bare[1:]) if bare[:1].isascii() else ("", bare[1:])

    letter, rest = marked(said)
    if letter in known and len(rest) <= 2 and all(mark in ").:," for mark in rest):
        return letter
    begun = rest[:1] == ")" if said.startswith("(") else rest[:1] in (")", ".", ":")
    if letter in known and rest and begun and rest[1:2].isspace():
        return letter
    named = set()
    low = said.lower()
    for place in range(len(said)):
        before = low[place - 1] if place else " "
        if not low.startswith("answer", place) or before.isalnum() or before == "_":
            continue
        after = said[place + 6 :]
        lean = after.lstrip()
        if lean.startswith(":"):
            after = lean[1:]
        elif lean[:2].lower() == "is" and lean != after:
            after = lean[2:]
        else:
            continue
        after = after.lstrip().removeprefix(":").lstrip(" \t\r\n*(")
        first, then = after[:1], after[1:2]
        if "A" <= first <= "Z" and first and not (then.isalnum() or then == "_"):
            named.add(first)
        elif (
            "a" <= first <= "z"
            and first
            and ((then and then in ").,;:!*") or not after[1:].strip())
        ):
            named.add(first.upper())
    if named:
        return named.pop() if len(named) == 1 and named <= {*known} else None
    text = normalize_answer(said)
    same = [
        one for one, option in zip(known, options, strict=True) if normalize_answer(option) == text
    ]
    return same[0] if text and len(same) == 1 else None
