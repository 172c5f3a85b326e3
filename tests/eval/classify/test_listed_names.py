"""A list of names beside data that have names too: another order is seen, not taken in silence."""

from pathlib import Path

import pytest

from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import ClassList
from mmtrain.eval.classify.layouts import open_labelled
from tests.eval.classify.test_layouts import write_clip_benchmark, write_folders

BY_NAME = [
    # A capital stands before a small letter, and a mark elsewhere than a space.
    (("Zebra", "ant", "hot_dog", "hotel"), ["ant", "hot dog", "hotel", "Zebra"]),
    (("Zebra", "ant", "hot_dog"), ["ant", "hot-dog", "ZEBRA"]),
    (("cat", "dog"), ["dog", "cat"]),
    (("0", "1", "2"), ["1", "2", "0"]),
    (("08", "9", "10"), ["9", "10", "08"]),
]


@pytest.mark.parametrize(("folders", "names"), BY_NAME)
def test_the_folders_own_names_are_theirs_in_any_order(folders, names, tmp_path: Path) -> None:
    data = str(write_folders(tmp_path, folders, each=1))
    classes = open_labelled({"data": data}, classes=names).classes
    found = dict(zip(classes.ids, classes.names, strict=True))
    spoken = {id: name.lower().replace(" ", "_").replace("-", "_") for id, name in found.items()}
    assert spoken == {folder: folder.lower() for folder in folders}


IN_ORDER = [
    (("car", "dog"), ["automobile", "dog"]),
    (("b", "a"), ["first", "second"]),
    (("cat", "dog"), ["a cat", "a dog"]),
    (("a_b", "a-b"), ["a b", "a.b"]),  # the same to whoever reads them: their order counts
]


@pytest.mark.parametrize(("folders", "names"), IN_ORDER)
def test_other_names_follow_the_folders(folders, names, tmp_path: Path) -> None:
    data = str(write_folders(tmp_path, folders, each=1))
    classes = open_labelled({"data": data}, classes=names).classes
    assert (list(classes.ids), list(classes.names)) == (sorted(folders), names)


ASTRAY = [
    (("car", "dog"), ["dog", "automobile"]),
    (("ant", "bee", "cat"), ["bee", "an ant", "cat"]),
    (("ant", "bee"), ["bee", "bee"]),
]


@pytest.mark.parametrize(("folders", "names"), ASTRAY)
def test_names_of_which_some_are_another_folders_are_refused(
    folders, names, tmp_path: Path
) -> None:
    data = str(write_folders(tmp_path, folders, each=1))
    told = rf"'{names[0]}' would be the folder '{folders[0]}', and there is one '{names[0]}'; .*id"
    with pytest.raises(UsageError, match=told):
        open_labelled({"data": data}, classes=names)
    said = ClassList(ids=folders, names=tuple(names))
    assert open_labelled({"data": data}, classes=said).classes.names == tuple(names)


def test_labels_that_count_the_datas_own_names(tmp_path: Path) -> None:
    data = str(write_clip_benchmark(tmp_path / "wds_mine"))
    for names in (["owl", "red fox"], ["Owl", "vixen"]):
        with pytest.raises(UsageError, match=r"wl' would be class 0, which .* calls 'red fox'"):
            open_labelled({"data": data}, classes=names)
    for names in (["vixen", "owl"], ["fox", "bird"], ["owl", "red fox", "dog"]):
        assert open_labelled({"data": data}, classes=names).classes.names == tuple(names)
    said = ClassList(ids=("0", "1"), names=("owl", "red fox"))
    assert open_labelled({"data": data}, classes=said).classes.names == said.names
