"""ImageNet's relatives: some classes as the only answers, by either way of counting labels."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.eval import evaluate_knn, evaluate_zero_shot
from mmtrain.eval.classify.classes import SUBSETS, ClassList, class_list, subset_places
from mmtrain.eval.classify.classification import ReadClass
from mmtrain.eval.classify.layouts import open_labelled
from mmtrain.eval.classify.subsets import choose, refuse_other_count
from mmtrain.eval.encode import encode_texts
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.classify.test_layouts import write_folders
from tests.eval.tiny import image_features, make_encoder

IMAGENET = class_list("imagenet")
A = subset_places("imagenet-a")
COUNT = 100
CLASSES = [37 * number % 200 for number in range(COUNT)]
"""Of each image, counted among the 200."""


def write_labelled(root: Path, labels: list[str], *, names: tuple[str, ...] | None) -> Path:
    """A folder of CLIP benchmark's with these labels and names, or else a tar."""
    (root / "test").mkdir(parents=True)
    samples = [
        (f"s{number:04d}", {"cls": label, "png": encoded(picture((9, 9), seed=number), "PNG")})
        for number, label in enumerate(labels)
    ]
    write_shard(root / "test/0.tar", samples)
    if names is not None:
        (root / "classnames.txt").write_text("\n".join(names) + "\n")
        return root
    return root / "test/0.tar"


def test_the_lists_are_the_published_ones() -> None:
    """By timm, which has those of the sets' authors, for the two that it has."""
    for name in ("imagenet-a", "imagenet-r"):
        told = files("timm.data._info").joinpath(f"{name.replace('-', '_')}_synsets.txt")
        assert list(class_list(name).ids) == told.read_text().split()
        assert [IMAGENET.ids[place] for place in subset_places(name)] == told.read_text().split()
    for name in SUBSETS:
        places = subset_places(name)
        assert len(places) == 200 and list(places) == sorted(set(places)) and places[-1] < 1000
    objectnet = class_list("objectnet")
    assert len(objectnet.ids) == 113 and list(objectnet.ids) == sorted(objectnet.ids)
    assert ("still_camera", "still camera") in zip(objectnet.ids, objectnet.names, strict=True)


@pytest.mark.slow
def test_every_way_of_labels_gives_the_accuracy_among_the_200(tmp_path: Path) -> None:
    """Against columns of the 1000 taken by hand."""
    A_names = tuple(IMAGENET.names[place] for place in A)
    among, within = [str(c) for c in CLASSES], [str(A[c]) for c in CLASSES]
    ids = [IMAGENET.ids[A[c]] for c in CLASSES]
    forms = [
        (write_labelled(tmp_path / "a", among, names=A_names), None, None),
        (write_labelled(tmp_path / "b", within, names=IMAGENET.names), None, "imagenet-a"),
        (write_labelled(tmp_path / "c", within, names=None), "imagenet", "imagenet-a"),
        (write_labelled(tmp_path / "d", among, names=None), "imagenet-a", None),
        (write_labelled(tmp_path / "e", ids, names=None), "imagenet", "imagenet-a"),
        (tmp_path / "e/test/0.tar", "imagenet-a", None),
    ]
    image_NE = image_features(tmp_path / "c/test/0.tar")
    text_ME = encode_texts(make_encoder(batch_size=64), list(IMAGENET.names)).double()
    right = (image_NE @ text_ME[list(A)].T).topk(5).indices == torch.tensor(CLASSES)[:, None]
    assert int(right.sum()) > 0
    for data, classes, subset in forms:
        task = open_labelled(
            {"data": str(data)},
            classes=classes,
            subset=subset,
            label_key=None if classes is None else "cls",
        )
        found = evaluate_zero_shot(make_encoder(batch_size=64), **task.arguments).figures
        assert found["num_classes"] == 200
        assert found["top1"] == int(right[:, 0].sum()) / COUNT, (data, subset)
        assert found["top5"] == int(right.sum()) / COUNT, (data, subset)


WRONG = {
    "0 to 199 over ImageNet's names": (
        [str(number % 200) for number in range(400)],
        IMAGENET.names,
        r"labels are 0 to 199 alone, and 1000 classes are named; .* such as imagenet-a, or set sub",
    ),
    "10 classes over ImageNet's names": (
        [str(number % 10) for number in range(100)],
        IMAGENET.names,
        r"labels are 0 to 9 alone, and 1000 classes are named; name the 10 that they count",
    ),
    "ImageNet's numbers of -A over all names": (
        [str(A[2 * c % 200]) for c in CLASSES] + [str(A[2 * c + 1]) for c in range(100)],
        IMAGENET.names,
        r"labels are of imagenet-a's 200 classes alone, .* set subset = imagenet-a, or",
    ),
    "ImageNet's numbers over the 200 names": (
        [str(A[c]) for c in CLASSES],
        class_list("imagenet-a").names,
        r"is not among the classes; if labels count ImageNet's 1000, set classes = imagenet and",
    ),
    "the low ones of ImageNet's numbers over the 200 names": (
        [str(A[c % 30]) for c in range(COUNT)],
        class_list("imagenet-a").names,
        r"all among imagenet-a's places in ImageNet's 1000, and 200 classes are named",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_labels_that_count_other_classes_are_refused(what: str) -> None:
    labels, names, told = WRONG[what]
    with pytest.raises(UsageError, match=told) as caught:
        read_all(class_list(names), labels)
    assert len(str(caught.value).splitlines()) == 1
    if "not among" not in told:  # and whoever means it says so
        read_all(choose(class_list(names), "all"), labels)


def read_all(known: ClassList, labels: list[str]) -> None:
    """As an evaluation does."""
    read = ReadClass.of(known, "cls")
    try:
        numbers = [read({"cls": label.encode()}) for label in labels]
    except SampleError as error:
        raise UsageError(str(error)) from error
    refuse_other_count(known, torch.tensor(numbers))


@pytest.mark.slow
def test_a_folder_of_clip_benchmarks_is_refused_in_one_line(tmp_path: Path) -> None:
    """Its labels 0 to 199, its classnames.txt ImageNet's 1000; said to be so, it is judged."""
    labels, names, told = WRONG["0 to 199 over ImageNet's names"]
    data = str(write_labelled(tmp_path / "wds", labels, names=names))
    encoder = make_encoder(batch_size=64)
    with pytest.raises(UsageError, match=told):
        evaluate_zero_shot(encoder, **open_labelled({"data": data}).arguments)
    task = open_labelled({"data": data}, subset="all")
    assert evaluate_zero_shot(encoder, **task.arguments).figures["num_classes"] == 1000


def test_what_may_well_be_so_is_not_refused() -> None:
    """Whole sets, sets without some classes, few images, classifiers that know no more."""
    two_hundred = class_list("imagenet-a")
    for known, labels in (
        (IMAGENET, list(range(1000))),
        (IMAGENET, list(range(0, 1000, 7))),
        (IMAGENET, [0, 1, 2] * 30),
        (IMAGENET, [0] * 200),
        (two_hundred, list(range(200))),
        (two_hundred, list(range(1, 200, 3)) * 2),
        (class_list(["a", "b", "c"]), [0, 1] * 100),
        (choose(IMAGENET, "imagenet-a"), list(range(200))),
    ):
        refuse_other_count(known, torch.tensor(labels))
    few = torch.arange(200) % 10
    refuse_other_count(IMAGENET, few, trained_N=few)
    with pytest.raises(UsageError, match="0 to 9 alone"):
        refuse_other_count(IMAGENET, few, trained_N=torch.arange(1000))


@pytest.mark.parametrize("label", ["³", "9" * 5000, "1000", "-1"])
def test_a_label_of_strange_figures_is_one_line(label: str) -> None:
    """A superscript is a digit and no number; Python makes none of 5,000 digits."""
    known = ClassList(ids=("²", "8" * 5000, "1"), names=("cat", "hare", "dog"))
    with pytest.raises(SampleError, match="is not among the classes") as caught:
        ReadClass.of(known, "cls")({"cls": label.encode()})
    assert len(str(caught.value)) < 300


def test_nearest_images_are_refused_alike(tmp_path: Path) -> None:
    """A test set that counts the 50, images that vote by the 1000."""
    train = write_labelled(
        tmp_path / "t", [str(7 * n % 1000) for n in range(40)] + ["0"] * 20, names=None
    )
    test = write_labelled(tmp_path / "s", [str(n % 50) for n in range(100)], names=None)
    with pytest.raises(UsageError, match="labels are 0 to 49 alone"):
        evaluate_knn(
            make_encoder(batch_size=64),
            train=str(train),
            test=str(test),
            classes="imagenet",
            label_key="cls",
        )


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (["hare", "red fox"], ("red fox", "hare")),
        ([2, 0], ("red fox", "hare")),
        (["o1", "o2"], ("owl", "hare")),
        ("o2\nowl\n", ("owl", "hare")),
    ],
)
def test_a_subset_of_ones_own(tmp_path: Path, entries, names: tuple[str, ...]) -> None:
    """By ids, names or places; in the order of the classes."""
    known = class_list("imagenet")
    known = type(known)(ids=("o0", "o1", "o2"), names=("red fox", "owl", "hare"))
    path = tmp_path / ("s.txt" if isinstance(entries, str) else "s.json")
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    assert choose(known, str(path)).names == names


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ("[3]", r"entry 0, '3', is neither an id nor a name of the 3 classes"),
        ('["owl", true]', "entry 1, 'True', is neither"),
        ('["owl", 1]', "names the class 'owl' twice"),
        ("[]", "is no list"),
        ('{"a": 1}', "is no list"),
        ("[", "nor a file that can be read"),
    ],
)
def test_a_wrong_subset_is_one_line(tmp_path: Path, entries: str, told: str) -> None:
    (tmp_path / "s.json").write_text(entries)
    with pytest.raises(UsageError, match=told) as caught:
        choose(class_list(["red fox", "owl", "hare"]), str(tmp_path / "s.json"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_subset_of_other_classes_or_by_a_wrong_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"imagenet-a is of ImageNet's 1000 classes, and there are 2"
    ):
        choose(class_list(["owl", "hare"]), "imagenet-a")
    with pytest.raises(UsageError, match=r"did you mean imagenet-r\?"):
        choose(IMAGENET, "imagnet-r")


def test_folders_of_other_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    """ImageNet's own images among ImageNet-A's classes, ObjectNet's among the 113."""
    folders = (IMAGENET.ids[A[0]], IMAGENET.ids[A[150]], IMAGENET.ids[1], "n02119789")
    data = str(write_folders(tmp_path / "in", folders, each=2))
    task = open_labelled({"data": data}, classes="imagenet", subset="imagenet-a")
    assert (task.sources["data"].num_samples, task.left_out) == (4, 4)
    figures = evaluate_zero_shot(make_encoder(batch_size=64), **task.arguments).figures
    assert (figures["num_samples"], figures["num_classes"]) == (4, 200)
    assert open_labelled({"data": data}, classes="imagenet").left_out == 0

    data = str(write_folders(tmp_path / "ob", ("air_freshener", "banana", "hammer"), each=1))
    task = open_labelled({"data": data}, classes="objectnet")
    assert task.left_out == 1 and len(task.classes.ids) == 113
    first = task.sources["data"]
    assert [first.key(n) for n in range(2)] == ["banana/0.JPEG", "hammer/0.JPEG"]
    assert (
        evaluate_zero_shot(make_encoder(batch_size=64), **task.arguments).figures["num_samples"]
        == 2
    )


@pytest.mark.parametrize(
    ("folders", "subset", "told"),
    [
        (
            ("n01440764", "mine"),
            "imagenet-a",
            r"its folder 'mine' is none of the 1000 named classes",
        ),
        (("n01440764",), "imagenet-a", r"none of its folders is one of the 200 classes"),
        (("0", "6"), "imagenet-a", r"its 2 folders have numbers such as 0, which is not in the"),
    ],
)
def test_folders_that_are_no_classes_are_one_line(tmp_path: Path, folders, subset, told) -> None:
    data = str(write_folders(tmp_path / "in", folders, each=1))
    with pytest.raises(UsageError, match=told):
        open_labelled({"data": data}, classes="imagenet", subset=subset)
