"""Folders that others laid out: ImageNet's and CLIP benchmark's."""

import json
from pathlib import Path

import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from PIL import Image

from mmtrain.errors import UsageError
from mmtrain.eval import evaluate_knn, evaluate_retrieval, evaluate_zero_shot
from mmtrain.eval.classify.classes import class_list
from mmtrain.eval.classify.layouts import open_labelled
from mmtrain.eval.classify.prompts import TEMPLATES
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.open_clip_towers import OpenClipTowers, open_clip_prediction, tiny_open_clip
from tests.eval.tiny import make_encoder

FOLDERS = ("n01440764", "n02119789", "n03126707", "n15075141")
COLORS = ("red", "lime", "blue", "black")
NAMES = ("tench", "kit fox", "construction crane", "toilet paper")


def write_folders(root: Path, folders: tuple[str, ...] = FOLDERS, *, each: int = 5) -> Path:
    """An ImageFolder of pictures of several kinds and sizes."""
    for row, folder in enumerate(folders):
        (root / folder / "more").mkdir(parents=True)
        for number in range(each):
            kind = ("JPEG", "PNG", "WEBP")[number % 3]
            image = picture((30 + 9 * number, 50 - 5 * row), seed=10 * row + number)
            if number > 2:
                image = Image.new("RGB", image.size, COLORS[row])
            inside = "more" if number == 1 else "."
            (root / folder / inside / f"{number}.{kind}").write_bytes(encoded(image, kind))
    (root / "notes.txt").write_text("not a class")
    return root


def test_imagenet_names_and_prompts_are_those_published() -> None:
    classes = class_list("imagenet")
    assert classes.names == tuple(IMAGENET_CLASSNAMES)
    assert list(classes.ids) == sorted(classes.ids) and len(set(classes.ids)) == 1000
    spelled = [template.replace("{name}", "dog") for template in TEMPLATES["imagenet"]]
    assert spelled == [template("dog") for template in OPENAI_IMAGENET_TEMPLATES]


def test_an_image_folder_equals_open_clips_loop(tmp_path: Path) -> None:
    """Every image of a folder of folders, prediction for prediction, by the 80 templates."""
    task = open_labelled({"data": str(write_folders(tmp_path))}, classes="imagenet")
    assert task.classes.names == NAMES, "a part of ImageNet chooses among its own classes"
    model = tiny_open_clip(32)
    towers = OpenClipTowers(model)
    encoder = make_encoder(towers, preprocess=towers.preprocess(32), batch_size=7)
    result = evaluate_zero_shot(encoder, **task.arguments, templates="imagenet", num_examples=99)

    predict = open_clip_prediction(model, 32, NAMES, OPENAI_IMAGENET_TEMPLATES)
    ours = {one.key: (one.text, one.predicted) for one in result.best}
    files = sorted(
        file for file in tmp_path.rglob("*") if file.suffix in (".JPEG", ".PNG", ".WEBP")
    )
    assert len(ours) == len(files) == 20
    for file in files:
        key = file.relative_to(tmp_path).as_posix()
        name = NAMES[FOLDERS.index(key.split("/")[0])]
        assert ours[key] == (name, predict(file.read_bytes())), key
    assert len({predicted for _, predicted in ours.values()}) > 1


@pytest.mark.parametrize(
    ("folders", "classes", "names"),
    [
        (("red_fox", "owl"), None, ["owl", "red fox"]),
        (("b", "a"), ["first", "second"], ["first", "second"]),
        (("10", "9", "0"), [f"name {i}" for i in range(11)], ["name 0", "name 10", "name 9"]),
    ],
)
def test_names_of_the_folders(tmp_path: Path, folders, classes, names: list[str]) -> None:
    task = open_labelled({"data": str(write_folders(tmp_path, folders, each=1))}, classes=classes)
    assert list(task.classes.names) == names
    assert list(task.classes.ids) == sorted(folders)


def test_a_class_without_pictures_is_still_a_choice(tmp_path: Path) -> None:
    write_folders(tmp_path, each=2)
    (tmp_path / "empty").mkdir()
    task = open_labelled({"data": str(tmp_path)})
    figures = evaluate_zero_shot(make_encoder(), **task.arguments).figures
    assert (figures["num_samples"], figures["num_classes"]) == (8, 5)


def test_classes_that_are_not_the_folders_are_one_line(tmp_path: Path) -> None:
    write_folders(tmp_path, each=1)
    for classes in (["one", "two"], class_list("imagenet").names):
        with pytest.raises(UsageError, match=r"names for the 4 folders of .* whose 'n01440764'"):
            open_labelled({"data": str(tmp_path)}, classes=classes)
    with pytest.raises(UsageError, match=r"label_key = concept: the layout of data says where"):
        open_labelled({"data": str(tmp_path)}, label_key="concept")


def write_clip_benchmark(root: Path, count: int = 9) -> Path:
    (root / "test").mkdir(parents=True)
    for shard in range(3):
        samples = [
            (
                f"s{number:04d}",
                {
                    "cls": str(number % 2),
                    "webp": encoded(picture((25, 20), seed=number), "WEBP"),
                    "txt": f"caption {number} one\ncaption {number} two\n",
                },
            )
            for number in range(shard, count, 3)
        ]
        write_shard(root / "test" / f"{shard}.tar", samples)
    (root / "test" / "nshards.txt").write_text("3")
    (root / "classnames.txt").write_text("red fox\nowl\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    return root


@pytest.mark.parametrize("named", ["", "test"])
def test_clip_benchmarks_folder_is_evaluated_as_it_says(tmp_path: Path, named: str) -> None:
    root = write_clip_benchmark(tmp_path / "wds_mine")
    task = open_labelled({"data": str(root / named)})
    assert task.templates == ("a photo of a {name}.", "the {name}")
    figures = evaluate_zero_shot(make_encoder(), **task.arguments, templates=task.templates).figures
    spelled = evaluate_zero_shot(
        make_encoder(),
        data=str(root / "test" / "{0..2}.tar"),
        classes=["red fox", "owl"],
        label_key="cls",
        templates=["a photo of a {}.", "the {}"],
    ).figures
    assert (figures["num_samples"], figures["num_classes"], figures["num_templates"]) == (9, 2, 2)
    assert figures["top1"] == spelled["top1"]
    json.dumps(figures)


def test_clip_benchmarks_captions_are_lines(tmp_path: Path) -> None:
    root = write_clip_benchmark(tmp_path / "wds_mine")
    figures = evaluate_retrieval(
        make_encoder(), data=str(root / "test"), caption_lines=True
    ).figures
    assert (figures["num_images"], figures["num_texts"]) == (9, 18)


def test_what_the_layout_lacks_is_named(tmp_path: Path) -> None:
    root = write_clip_benchmark(tmp_path / "wds_mine")
    (root / "zeroshot_classification_templates.txt").unlink()
    assert open_labelled({"data": str(root)}).templates is None
    (root / "test").rename(root / "val")
    with pytest.raises(UsageError, match=r"data = .* has no split test; name one of .*mine/val$"):
        open_labelled({"data": str(root)})
    shards = str(root / "val" / "{0..2}.tar")
    with pytest.raises(UsageError, match=r"classes are not named, and .*tar says none"):
        open_labelled({"data": shards}, label_key="cls")
    with pytest.raises(UsageError, match=r"train = .*none"):
        open_labelled({"train": str(tmp_path / "none"), "test": shards})


def test_sets_of_one_evaluation_agree(tmp_path: Path) -> None:
    """The first one's classes are all's; another layout or other classes are refused."""
    train = str(write_folders(tmp_path / "train", each=2))
    test = str(write_folders(tmp_path / "test", FOLDERS[1:3], each=1))
    sets = open_labelled({"train": train, "test": test}, classes="imagenet")
    assert sets.classes.names == NAMES and list(sets.sources) == ["train", "test"]
    assert evaluate_knn(make_encoder(), **sets.arguments, neighbours=1).figures["num_classes"] == 4
    with pytest.raises(UsageError, match=r"test has the class n01440764 .*, train has not"):
        open_labelled({"train": test, "test": train})
    shards = str(write_clip_benchmark(tmp_path / "wds_mine"))
    with pytest.raises(UsageError, match=r"test has its classes under 'cls' and train under"):
        open_labelled({"train": train, "test": shards})


@pytest.mark.parametrize("names", [("0", "1", "2", "10"), ("7", "08", "9", "100")])
def test_folders_that_are_called_by_numbers_stand_in_their_order(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """As ImageNet-V2's: by letter, 10 would take the name of class 2."""
    write_folders(tmp_path, names, each=1)
    named = [{"id": f"n{number}", "name": f"thing {name}"} for number, name in enumerate(names)]
    (tmp_path.parent / "named.json").write_text(json.dumps(named))
    found = open_labelled({"data": str(tmp_path)}, classes=str(tmp_path.parent / "named.json"))
    assert found.classes.ids == names
    assert found.classes.names == tuple(f"thing {name}" for name in names)
