import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.errors import UsageError
from mmtrain.eval import evaluate_retrieval, scores
from mmtrain.eval.evaluators.retrieval import RetrievalConfig
from mmtrain.eval.samples import Members, decode_sample
from mmtrain.eval.scheduled import check_evaluation
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.tiny import (
    LinearTowers,
    image_features,
    make_encoder,
    text_features,
    write_captioned,
)


def several(count: int) -> list[list[str]]:
    """One to four captions an image; the same word returns here and there."""
    words = ("red", "small", "fox", "lake", "tower", "old", "night")
    return [
        [f"{words[i % 7]} {words[(i + k) % 5]} {i // 9}" for k in range(1 + i % 4)]
        for i in range(count)
    ]


def reference(path: Path, captions: list[list[str]]) -> dict[str, float]:
    """Sorted lists, in fp64: equal scores in the order of the data, equal texts are one's own."""
    texts = [(text, image) for image, own in enumerate(captions) for text in own]
    scores = image_features(path) @ text_features([text for text, _ in texts]).T
    scores = scores.float().double()
    to_text, to_image = [], []
    for image, own in enumerate(captions):
        order = sorted(range(len(texts)), key=lambda m: (-float(scores[image, m]), m))
        to_text.append(next(place for place, m in enumerate(order) if texts[m][0] in own))
    for m, (_, image) in enumerate(texts):
        order = sorted(range(len(captions)), key=lambda n: (-float(scores[n, m]), n))
        to_image.append(order.index(image))
    return {
        f"{way}_recall@{k}": sum(rank < k for rank in ranks) / len(ranks)
        for way, ranks in (("i2t", to_text), ("t2i", to_image))
        for k in (1, 5, 10)
    }


@pytest.mark.parametrize("max_scores", [2**24, 100, 1])
def test_recalls_are_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_scores: int
) -> None:
    """Whatever the blocks that scores are computed in, down to one row each."""
    monkeypatch.setattr(scores, "MAX_SCORES", max_scores)
    captions = several(31)
    data = write_captioned(tmp_path / "a.tar", captions)
    wanted = reference(data, captions)
    figures = evaluate_retrieval(make_encoder(), data=str(data), captions=["captions"]).figures
    assert {name: figures[name] for name in wanted} == wanted
    assert 0 < wanted["i2t_recall@1"] < wanted["i2t_recall@10"] < 1, "this tells nothing"
    assert 0 < wanted["t2i_recall@1"] < wanted["t2i_recall@10"] < 1, "this tells nothing"
    assert (figures["num_images"], figures["num_texts"]) == (31, sum(map(len, captions)))


def test_equal_pictures_and_equal_texts(tmp_path: Path) -> None:
    """Ties: seven equal pictures rank in the order of the data; equal texts are equally right."""
    captions = several(20)
    captions[4] = captions[11] = captions[17] = ["the very same"]
    captions[5] = ["twice in one", "twice in one"]
    data = write_captioned(tmp_path / "a.tar", captions, same=(1, 4, 9, 11, 12, 17, 19))
    wanted = reference(data, captions)
    figures = evaluate_retrieval(make_encoder(), data=str(data), captions=["captions"]).figures
    assert {name: figures[name] for name in wanted} == wanted


def test_a_model_that_tells_nothing_apart_is_at_chance(tmp_path: Path) -> None:
    data = write_captioned(tmp_path / "a.tar", [[f"text {number}"] for number in range(20)])
    model = LinearTowers()
    model.pixels_DE.zero_()
    figures = evaluate_retrieval(make_encoder(model), data=str(data), captions=["captions"]).figures
    for way in ("i2t", "t2i"):
        assert [figures[f"{way}_recall@{k}"] for k in (1, 5, 10)] == [1 / 20, 5 / 20, 10 / 20]


def test_captions_from_members_fields_and_lines(tmp_path: Path) -> None:
    image = encoded(picture((20, 20)), "PNG")
    files = {"png": image, "txt": "one\n\n two \n", "json": {"alt": "three", "more": ["four", " "]}}
    data = str(write_shard(tmp_path / "a.tar", [("a", files)]))

    def count(*fields: str, lines: bool | None = None) -> int:
        figures = evaluate_retrieval(
            make_encoder(), data=data, captions=fields, caption_lines=lines
        ).figures
        assert figures["captions"] == list(fields)
        assert figures["min_captions"] == figures["max_captions"] == figures["num_texts"]
        return figures["num_texts"]

    assert count("txt", lines=False) == 1
    assert count("txt", lines=True) == 2
    assert count("txt", "alt", "more", lines=False) == 3
    assert count("alt", "more") == 2


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("a cat", 1),
        ("a cat\n", 1),
        ("\n a cat \r\n\n", 1),
        ("a\u2028cat\x0bor\x85dog", 1),
        ('["a cat", "a dog"]', 2),
        ("['a cat', \"a dog's\", 'x']", 3),
        ('["a cat"]', 1),
        ("[deleted]", 1),
        ("[1, 2]", 1),
        ("[]", 1),
        ("a cat\na dog", None),
        ("a cat\r\na dog\r\n", None),
        ("a cat\ra dog\rx\ry", None),
        ("1. a cat\n\n2. a dog", None),
    ],
)
@pytest.mark.parametrize("place", ["txt", "alt"])
def test_one_caption_is_told_from_several(tmp_path: Path, place: str, text: str, captions):
    """Lists are told from the data; lines may be either, and both readings are named."""
    image = encoded(picture((20, 20)), "PNG")
    files = {"png": image} | ({"txt": text} if place == "txt" else {"json": {"alt": text}})
    data = str(write_shard(tmp_path / "a.tar", [("a", files)]))

    def count(lines: bool | None) -> int:
        return evaluate_retrieval(
            make_encoder(), data=data, captions=[place], caption_lines=lines
        ).figures["num_texts"]

    if captions is not None:
        assert count(None) == captions and count(False) == 1
        return
    num = len([line for line in text.splitlines() if line.strip()])
    assert (count(True), count(False)) == (num, 1)
    with pytest.raises(UsageError) as error:
        count(None)
    told = str(error.value)
    assert f"sample a of {data}: its {place} has {num} lines" in told
    assert "--caption-lines" in told and "--one-caption" in told and "mend" not in told


def test_a_recipe_is_asked_before_its_first_step(tmp_path: Path):
    image = encoded(picture((20, 20)), "PNG")
    data = str(write_shard(tmp_path / "a.tar", [("a", {"png": image, "txt": "a cat\na dog"})]))
    for lines in (True, False):
        config = RetrievalConfig(name="x", data=data, caption_lines=lines)
        check_evaluation(config, PreprocessConfig(image_size=16))
    with pytest.raises(UsageError, match=r"its txt has 2 lines, .*caption_lines = false\)\?$"):
        check_evaluation(RetrievalConfig(name="x", data=data), PreprocessConfig(image_size=16))


def test_rows_of_one_file_are_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """COCO's captions as a table, several rows an image: as good as one row with a list of them,
    and an image is decoded once."""
    captions = several(9)
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture((22, 19), seed=number), "PNG"))
    rows = [
        json.dumps({"filepath": f"{'./' * (place % 2)}{number}.png", "caption": text})
        for place in range(4)
        for number, own in enumerate(captions)
        for text in own[place : place + 1]
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = write_captioned(tmp_path / "a.tar", captions)
    wanted = evaluate_retrieval(make_encoder(), data=str(data), captions=["captions"])
    decoded: list[Members] = []

    def counted(members: Members) -> Image.Image:
        decoded.append(members)
        return decode_sample(members)

    monkeypatch.setattr("mmtrain.eval.samples.decode_sample", counted)
    table = str(tmp_path / "rows.jsonl")
    found = evaluate_retrieval(make_encoder(), data=table, captions=["caption"], num_examples=0)
    assert len(decoded) == 9 < len(rows)
    found = evaluate_retrieval(make_encoder(), data=table, captions=["caption"])
    for name in ("num_images", "num_texts", "min_captions", "max_captions", "num_different_images"):
        assert found.figures[name] == wanted.figures[name], name
    names = [name for name in wanted.figures if "recall" in name]
    assert [found.figures[name] for name in names] == [wanted.figures[name] for name in names]
    assert found.figures["num_samples"] == len(rows)
    assert {one.key for one in found.best} <= {f"{number}.png" for number in range(9)}
    assert found.best[0].picture == wanted.best[0].picture


def test_equal_images_of_several_samples_are_told(tmp_path: Path):
    data = write_captioned(tmp_path / "a.tar", [["a"], ["b"], ["c"], ["d"]], same=(0, 2, 3))
    figures = evaluate_retrieval(make_encoder(), data=str(data), captions=["captions"]).figures
    assert (figures["num_images"], figures["num_different_images"]) == (4, 2)


@pytest.mark.parametrize(
    ("captions", "told"),
    [
        ([], "no caption in captions"),
        ([" "], "no caption in captions"),
        (7, "neither a text nor a list of texts"),
        (["a", None], "neither a text nor a list of texts"),
    ],
)
def test_a_sample_without_captions_names_itself(tmp_path: Path, captions, told: str) -> None:
    data = write_captioned(tmp_path / "a.tar", [["fine"], captions, ["fine too"]])
    with pytest.raises(UsageError, match=f"sample 00001 of .*a.tar: .*{told}"):
        evaluate_retrieval(make_encoder(), data=str(data), captions=["captions"])


def test_text_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """No number is above a NaN, so every caption would be in first place."""
    data = write_captioned(tmp_path / "a.tar", [["a"], ["b"]])
    model = LinearTowers()
    model.tokens_VE[:] = torch.nan
    with pytest.raises(UsageError, match="text features are not finite"):
        evaluate_retrieval(make_encoder(model), data=str(data), captions=["captions"])


def test_the_pictures_shown_are_the_best_and_the_worst(tmp_path: Path) -> None:
    captions = several(31)
    data = write_captioned(tmp_path / "a.tar", captions)
    result = evaluate_retrieval(make_encoder(), data=str(data), captions=["captions"])
    assert (len(result.best), len(result.worst)) == (10, 10)
    ranks = [one.rank for one in (*result.best, *reversed(result.worst))]
    assert ranks == sorted(ranks)
    for one in result.best:
        own = captions[int(one.key)]
        assert one.text == own[0]
        assert (one.rank == 1) == (one.predicted in own)
        assert one.num_candidates == sum(map(len, captions))
