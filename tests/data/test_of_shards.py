"""Settings of shards, of data that are none or that are some of several."""

import pytest

from mmtrain.data.mixture import MixtureSource
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, write_set, write_shard


def mixture(*places: str) -> dict[str, object]:
    return {
        "mixture": tuple(
            MixtureSource(name=f"n{number}", train=place, weight=1.0)
            for number, place in enumerate(places)
        )
    }


@pytest.mark.parametrize("option", [{"on_damage": "use_rest"}, {"index_dir": "i"}])
@pytest.mark.parametrize("places", [("synthetic:16",), ("synthetic:16", "synthetic:24")])
def test_what_no_source_reads_is_refused(option, places):
    told = {"train": places[0]} if len(places) == 1 else {"train": None, **mixture(*places)}
    with pytest.raises(
        UsageError, match=rf"data.{next(iter(option))} = \S+ has no effect: .*leave"
    ):
        build_data(**told, **option)


def test_it_is_enough_that_one_of_several_reads_it(tmp_path):
    """The index of its shards goes there; the other one has none."""
    data = build_data(
        None,
        **mixture(write_set(tmp_path / "a", (6, 6)), "synthetic:24"),
        index_dir=str(tmp_path / "i"),
        on_damage="use_rest",
    )
    assert data.num_samples == 36
    assert len(list((tmp_path / "i").iterdir())) == 2


@pytest.mark.parametrize("joined", ["shards", "table"])
def test_indexes_of_joined_shards_go_there(tmp_path, joined):
    """The data themselves have none."""
    (tmp_path / "table.csv").write_text("key,extra\n0,x\n")
    place = tmp_path / "table.csv"
    if joined == "shards":
        place = write_shard(tmp_path / "more.tar", [("0", {"json": {"extra": "x"}})])
    options = {"join": (str(place),), "join_missing": "keep", "index_dir": str(tmp_path / "i")}
    if joined == "shards":
        assert build_data("synthetic:8", **options).num_samples == 8
        assert len(list((tmp_path / "i").iterdir())) == 1
    for more in ({"on_damage": "use_rest"}, {}):
        if joined == "table" or more:
            with pytest.raises(UsageError, match=r"data\.\w+ = \S+ ha(s|ve) no effect: .*leave"):
                build_data("synthetic:8", **options, **more)
