"""The published rules of further sets, written a second time from their scripts' behaviour."""

import re

from mmtrain.data.questions.wording import CONTRACTIONS

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
