"""Our zero-shot evaluation gives the predictions of open_clip's loop, its own preprocess."""

import json
import tarfile
from pathlib import Path

import open_clip
import pytest

from mmtrain.demo.emoji_pairs import read_pairs, unpack_emoji_pairs
from mmtrain.eval import evaluate_zero_shot
from mmtrain.eval.classify.classes import class_list
from mmtrain.eval.classify.prompts import TEMPLATES
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.open_clip_towers import OpenClipTowers, open_clip_prediction, tiny_open_clip
from tests.eval.tiny import make_encoder

SIDE = 32
NAMES = class_list("imagenet").names[300:340]


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    return tiny_open_clip(SIDE)


def write_pictures(path: Path) -> Path:
    """Every mode and kind that decoders and resizes treat in their own way."""
    kinds = [
        ("RGB", "JPEG"),
        ("RGB", "PNG"),
        ("RGB", "WEBP"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("L", "JPEG"),
        ("L", "PNG"),
        ("CMYK", "JPEG"),
    ]
    samples = []
    for number in range(48):
        mode, kind = kinds[number % len(kinds)]
        image = picture((33 + 11 * (number % 6), 28 + 17 * (number % 5)), mode=mode, seed=number)
        extension = {"JPEG": "jpg"}.get(kind, kind.lower())
        files = {extension: encoded(image, kind), "cls": str(number % len(NAMES))}
        samples.append((f"{number:03d}", files))
    return write_shard(path, samples)


def images_of(path: Path) -> list[bytes]:
    """As Python's own tarfile reads them."""
    with tarfile.open(path) as tar:
        members = [member for member in tar if not member.name.endswith(".cls")]
        files = [tar.extractfile(member) for member in members]
        return [file.read() for file in files if file is not None]


@pytest.mark.parametrize(
    ("resize_mode", "templates"), [("shortest", "simple"), ("squash", "name"), ("longest", "name")]
)
def test_predictions_are_open_clips(
    tmp_path: Path, model: open_clip.CLIP, resize_mode: str, templates: str
) -> None:
    data = write_pictures(tmp_path / "pictures.tar")
    spelled = [
        lambda name, template=template: template.replace("{name}", name)
        for template in TEMPLATES[templates]
    ]
    predict = open_clip_prediction(model, SIDE, NAMES, spelled, resize_mode)
    theirs = [predict(image) for image in images_of(data)]

    towers = OpenClipTowers(model)
    encoder = make_encoder(towers, preprocess=towers.preprocess(SIDE, resize_mode), batch_size=7)
    result = evaluate_zero_shot(
        encoder,
        data=str(data),
        classes=NAMES,
        label_key="cls",
        templates=templates,
        num_examples=48,
    )

    ours = {one.key: one.predicted for one in result.best}
    assert [ours[f"{number:03d}"] for number in range(48)] == theirs
    assert len(set(theirs)) > 2, "a model that always says the same proves nothing"
    right = sum(name == NAMES[number % len(NAMES)] for number, name in enumerate(theirs))
    assert result.figures["top1"] == right / 48


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_predictions_on_emoji_pairs_are_open_clips(tmp_path: Path) -> None:
    pairs = unpack_emoji_pairs(tmp_path)
    known = class_list(pairs.classes_seen)
    model = tiny_open_clip(64)
    predict = open_clip_prediction(model, 64, known.names, [lambda name: name])
    theirs = {
        f"{about['vendor']}_{about['concept'].lower()}": (
            predict(members["webp"]),
            about["concept"],
        )
        for _, members in read_pairs(pairs.val_twemoji)
        for about in [json.loads(members["json"])]
    }

    towers = OpenClipTowers(model)
    result = evaluate_zero_shot(
        make_encoder(towers, preprocess=towers.preprocess(64), batch_size=64),
        data=str(pairs.val_twemoji),
        classes=pairs.classes_seen,
        templates="name",
        num_examples=len(theirs),
    )

    assert len(theirs) == 1493
    assert {one.key: one.predicted for one in result.best} == {k: p for k, (p, _) in theirs.items()}
    assert len({predicted for predicted, _ in theirs.values()}) > 20
    names = dict(zip(known.ids, known.names, strict=True))
    right = sum(predicted == names[concept] for predicted, concept in theirs.values())
    assert result.figures["top1"] == pytest.approx(right / 1493)
