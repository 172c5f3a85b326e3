"""A look: what is in it is the model's own, and its pictures are of the samples it names."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.sources.open import open_source
from mmtrain.errors import UsageError
from mmtrain.eval.look import look as look_module
from mmtrain.eval.look.answer_picture import answer_picture
from mmtrain.eval.look.attention_maps import read_images, text_maps
from mmtrain.eval.look.files import write_look
from mmtrain.eval.look.look import MAX_MAPS, evenly_spaced, look_at
from mmtrain.eval.look.pictures import (
    MAP_SIDE,
    RAMP,
    TILE,
    draw_heat,
    ramp_colours,
    seen_part,
    under_heat,
)
from mmtrain.eval.look.rollout import attention_rollout
from mmtrain.eval.retrieval import ReadCaptions
from mmtrain.eval.samples import decode_sample
from tests.data.shard_files import picture
from tests.serve.tiny import COUNT, TOKENIZER, tiny_clip, tiny_encoder, write_pictures


def read_text(members: dict[str, bytes]) -> str:
    return ReadCaptions(fields=("txt",), lines=False)(members)[0]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_what_is_told_is_the_models_own(tmp_path: Path) -> None:
    source = open_source(str(write_pictures(tmp_path / "a.tar")))
    model = tiny_clip()
    encoder = tiny_encoder(model)
    look = look_at(encoder, source=source, read_text=read_text)
    assert look.keys == [f"{number:05d}" for number in range(COUNT)] and look.num_samples == COUNT
    assert look.texts == [f"picture {number}" for number in range(COUNT)]
    transform = eval_transform(encoder.preprocess)
    squares = torch.stack([transform(decode_sample(source.read(n))) for n in range(COUNT)])
    with torch.no_grad():
        cosine = model.encode_image(squares) @ model.encode_text(TOKENIZER(look.texts)).T
    assert look.nearest_N == cosine.argmax(1).tolist()
    assert [one.cosine for one in look.maps] == pytest.approx(cosine.diagonal().tolist(), abs=1e-5)
    text_ME = model.encode_text(TOKENIZER(look.texts)).detach()
    adds = text_maps(model, read_images(model, squares), text_ME).amax((1, 2))
    shares = attention_rollout(model, squares)
    assert [one.peak for one in look.maps] == pytest.approx(adds.tolist(), abs=1e-5)
    for one, share in zip(look.maps, shares, strict=True):
        assert one.shares == pytest.approx((float(share.min()), float(share.max())), abs=1e-5)
        assert one.grid == (2, 2)
    for image_N2, text_U2 in look.planes.values():
        assert image_N2.shape == text_U2.shape == (COUNT, 2)


def test_pictures_are_of_the_samples(tmp_path: Path) -> None:
    source = open_source(str(write_pictures(tmp_path / "a.tar")))
    look = look_at(tiny_encoder(tiny_clip()), source=source, read_text=read_text)
    sheet = opened(look.sheet)
    originals = [decode_sample(source.read(n)).convert("RGB") for n in range(COUNT)]
    for number, image in enumerate(originals):
        left, top = (TILE - image.width) // 2 + number * TILE, (TILE - image.height) // 2
        tile = np.asarray(sheet.crop((left, top, left + image.width, top + image.height)), float)
        off = [
            np.abs(tile - np.asarray(other.resize(image.size), float)).mean() for other in originals
        ]
        assert off[number] < 0.8 * sorted(off)[1]
        for data in (look.maps[number].text_map, look.maps[number].rollout):
            assert opened(data).size == opened(look.maps[number].picture).size


def test_texts_that_are_the_same_are_one(tmp_path: Path) -> None:
    source = open_source(str(write_pictures(tmp_path / "a.tar")))
    look = look_at(
        tiny_encoder(tiny_clip()), source=source, read_text=lambda x: f"{read_text(x)[-1] < '3'}"
    )
    assert look.texts == ["True", "False"] and look.text_N == [0, 0, 0, 1, 1, 1, 1]
    assert look.planes["pca"][1].shape == (2, 2)


def test_a_broken_sample_is_named(tmp_path: Path) -> None:
    source = open_source(str(write_pictures(tmp_path / "a.tar", broken=(2,))))
    with pytest.raises(
        UsageError, match=r"sample 00002 of .*a\.tar cannot be shown: no image that Pillow"
    ):
        look_at(tiny_encoder(tiny_clip()), source=source, read_text=read_text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("broken", ["text_maps", "attention_rollout"])
def test_maps_that_are_not_finite_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, value: float
) -> None:
    """Of a model whose features still are, as a learning rate far too high leaves it."""
    whole = getattr(look_module, broken)

    def with_one(*given: Any) -> torch.Tensor:
        maps = whole(*given).clone()
        maps[1, 0, 0] = value
        return maps

    monkeypatch.setattr(look_module, broken, with_one)
    source = open_source(str(write_pictures(tmp_path / "a.tar")))
    with pytest.raises(UsageError, match=r"cannot be drawn: .* not finite"):
        look_at(tiny_encoder(tiny_clip()), source=source, read_text=read_text)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answers_map_that_is_not_finite_is_told(value: float) -> None:
    told = {"region": (0, 0, 1, 1), "question": "what?", "answer": "red", "probability": 0.5}
    with pytest.raises(UsageError, match=r"cannot be drawn: .* not finite"):
        answer_picture(Image.new("RGB", (8, 8)), torch.tensor([[0.5, value]]), **told)


def test_samples_are_evenly_spaced() -> None:
    assert evenly_spaced(5, MAX_MAPS) == [0, 1, 2, 3, 4]
    assert evenly_spaced(100, 4) == [12, 37, 62, 87]
    assert len(set(evenly_spaced(1493, 300))) == 300


def test_heat_is_where_the_map_is_high() -> None:
    grey = Image.new("RGB", (80, 80), (128, 128, 128))
    map_RC = torch.tensor([[-1.0, 0.0], [0.0, 2.0]])
    shown = np.asarray(opened(draw_heat(grey, map_RC, low=0.0)), float)
    corners = [shown[y, x].sum() for y, x in ((4, 4), (4, 75), (75, 4), (75, 75))]
    assert corners[3] == max(corners) and max(corners[:3]) - min(corners[:3]) < 12
    assert shown[75, 75] == pytest.approx(0.28 * 128 + 0.72 * np.array(RAMP[-1]), abs=6)
    assert shown[4, 4] == pytest.approx(0.58 * 128 + 0.42 * np.array(RAMP[0]), abs=6)
    flat = np.asarray(opened(draw_heat(grey, torch.full((2, 2), 0.25), low=0.25)), float)
    assert flat.std((0, 1)).max() < 2


def test_colours_go_through_the_ramp() -> None:
    places = torch.linspace(0, 1, len(RAMP))[None]
    torch.testing.assert_close(
        ramp_colours(places)[0], torch.tensor(RAMP).float(), atol=1e-3, rtol=0
    )
    middle = ramp_colours(torch.tensor([[0.1]]))[0, 0]
    torch.testing.assert_close(middle, (torch.tensor(RAMP[0]) + torch.tensor(RAMP[1])).float() / 2)


def test_the_part_that_the_model_sees() -> None:
    wide = picture((60, 30), seed=4)
    part = seen_part(wide, (0.25, 0.0, 0.5, 1.0))
    assert part.size == (MAP_SIDE, MAP_SIDE)
    expected = wide.crop((15, 0, 45, 30)).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC)
    assert part.tobytes() == expected.tobytes()
    bordered = seen_part(wide, (0.0, -0.5, 1.0, 2.0))
    assert bordered.size == (MAP_SIDE, MAP_SIDE) and bordered.getpixel((5, 5)) == (0, 0, 0)


def test_on_disk(tmp_path: Path) -> None:
    source = open_source(str(write_pictures(tmp_path / "a.tar")))
    look = look_at(tiny_encoder(tiny_clip()), source=source, read_text=read_text)
    for _ in range(2):
        write_look(tmp_path / "look", look, told={"weights": "abc"})
    held = json.loads((tmp_path / "look" / "look.json").read_text())
    assert held["weights"] == "abc" and held["text"] == look.text_N and len(held["maps"]) == COUNT
    for name in (held["sheet"]["picture"], *(one["rollout"] for one in held["maps"])):
        assert opened((tmp_path / "look" / name).read_bytes()).width > 0
    assert held["planes"]["tsne"]["images"][3] == pytest.approx(
        look.planes["tsne"][0][3].tolist(), rel=1e-4
    )


@pytest.mark.parametrize(
    "region", [(0.25, 0.0, 0.5, 1.0), (-0.5, 0.25, 2.0, 0.5), (0.0, -0.25, 1.0, 1.5)]
)
def test_a_map_lies_over_what_was_seen_alone(region: tuple[float, float, float, float]) -> None:
    """A cropped picture is darkest at its edges, a map over black borders loses them."""
    grey, map_RC = Image.new("RGB", (40, 24), (128, 128, 128)), torch.full((2, 2), 0.25)
    shown = np.asarray(under_heat(grey, map_RC, low=0.0, region=region), float)
    assert shown.shape == (24, 40, 3)
    left, top, wide, high = region
    row_H1, column_1W = (np.arange(24)[:, None] + 0.5) / 24, (np.arange(40)[None] + 0.5) / 40
    inside = (row_H1 > top) & (row_H1 < top + high)
    inside = inside & (column_1W > left) & (column_1W < left + wide)
    bright, dark = 0.28 * 128 + 0.72 * np.array(RAMP[-1]), 0.58 * 128 + 0.42 * np.array(RAMP[0])
    assert abs(shown - np.where(inside[:, :, None], bright, dark)).max() < 1
