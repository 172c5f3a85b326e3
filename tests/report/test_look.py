"""The part of the page that needs the model: when it is made, from what, and what a page shows."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.eval.look.files import write_look
from mmtrain.loading import save_model
from mmtrain.report import write_report
from mmtrain.report.look import update_look
from mmtrain.report.look_page import read_look
from tests.report.folders import make_look, make_run
from tests.report.test_report import HOSTILE, Page
from tests.serve.tiny import SIDE, TOKENIZER, tiny_clip, tiny_encoder, write_pictures

TOLD = {"format": 1, "weights": "abc", "evaluation": {"kind": "retrieval", "name": "pairs"}}


def run_with_model(path: Path, evaluation: str = "", **broken: tuple[int, ...]) -> Path:
    """A run that ended: a recipe, an export and held-out pictures."""
    run = make_run(path)
    shard = write_pictures(path / "held_out.tar", **broken)
    evaluation = evaluation or f'[[eval.retrieval]]\nname = "pairs"\ndata = "{shard}"\n'
    with (run / "recipe.toml").open("a") as file:
        file.write(evaluation)
    preprocess = PreprocessConfig(image_size=SIDE)
    save_model(run / "export", model=tiny_clip(), tokenizer=TOKENIZER, preprocess=preprocess)
    return run


def test_a_run_gets_its_look_once(tmp_path: Path) -> None:
    run = run_with_model(tmp_path / "run")
    page = Page(write_report((run,)))
    assert "7 of 7 images of pairs" in " ".join(page.texts)
    assert page.tags.count("input") == 2 + 7 and "script" not in page.tags
    made = (run / "look" / "look.json").stat().st_mtime_ns
    write_report((run,))
    assert (run / "look" / "look.json").stat().st_mtime_ns == made

    # Other weights, and a picture that is lost, ask for another.
    (run / "look" / "sheet.webp").unlink()
    write_report((run,))
    assert (run / "look" / "sheet.webp").is_file()
    before = (run / "look" / "look.json").read_text()
    model = tiny_clip(bias=-1.0)
    save_model(
        run / "export",
        model=model,
        tokenizer=TOKENIZER,
        preprocess=PreprocessConfig(image_size=SIDE),
    )
    assert update_look(run, encoder=tiny_encoder(model)) is None
    assert (run / "look" / "look.json").read_text() != before


def test_classes_stand_for_captions(tmp_path: Path) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps([f"picture {n}" for n in range(7)]))
    run = run_with_model(tmp_path / "run", "# later\n")
    names = [{"id": f"picture {n}", "name": f"name {n}"} for n in range(7)]
    classes.write_text(json.dumps(names))
    with (run / "recipe.toml").open("a") as file:
        file.write(
            f'[[eval.zero_shot]]\nname = "z"\ndata = "{run / "held_out.tar"}"\n'
            f'classes = "{classes}"\nlabel_key = "txt"\n'
        )
    told = " ".join(Page(write_report((run,))).texts)
    assert "7 of 7 images of z and their classes" in told and "name 3" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: (run / "export" / "config.json").unlink(), "has no export/ yet"),
        (lambda run: (run / "held_out.tar").unlink(), "held_out.tar"),
        (lambda run: (run / "export" / "model.safetensors").write_bytes(b"x"), "SHA-256"),
        (lambda run: (run / "recipe.toml").write_text("[eval"), "names no data to evaluate on"),
        (lambda run: (run / "recipe.toml").write_text("eval = 3"), "names no data to evaluate on"),
    ],
)
def test_what_is_lacking_is_told_and_the_page_is_there(tmp_path: Path, change, told: str) -> None:
    run = run_with_model(tmp_path / "run")
    change(run)
    page = " ".join(Page(write_report((run,))).texts)
    assert "No maps are here." in page and told in page and "40 steps" in page


def test_a_broken_sample_is_told(tmp_path: Path) -> None:
    run = run_with_model(tmp_path / "run", broken=(3,))
    assert "sample 00003 of" in " ".join(Page(write_report((run,))).texts)


def test_the_page_shows_each_image_with_its_text(tmp_path: Path) -> None:
    write_look(tmp_path / "look", make_look(texts=2), told=TOLD)
    notes: list[str] = []
    look = read_look(tmp_path / "look", notes)
    assert look is not None and not notes
    assert [dot.is_right for dot in look.dots] == [True, False, False, False, False]
    assert look.num_right == 1 and len(look.words) == 2 and look.sheet_rows == 1
    # Places are percents of a square; the text's are its own dot's.
    for dot in look.dots:
        values = [float(x) for x in re.findall(r"--[xyuvXYUV]:(-?[\d.]+)", dot.style)]
        assert len(values) == 8 and all(0 <= value <= 100 for value in values)
        text = dict(look.words)[dot.text]
        assert re.findall(r":([\d.]+)", text) == re.findall(r"--[XYUV]:([\d.]+)", dot.style)
    tile = re.search(r"--l:([\d.]+)%;--t:([\d.]+)%", look.dots[3].style)
    assert tile is not None and float(tile[1]) == pytest.approx(100 * 3 / 19, abs=0.01)
    kind, _, data = look.maps[0].uris["rollout"].partition(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 30)


def test_the_top_of_the_plane_is_up(tmp_path: Path) -> None:
    write_look(tmp_path / "look", make_look(), told=TOLD)
    look = read_look(tmp_path / "look", [])
    assert look is not None
    heights = [float(re.findall(r"--y:([\d.]+)", dot.style)[0]) for dot in look.dots]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda held: held.pop("planes"),
        lambda held: held["planes"]["pca"]["images"].pop(),
        lambda held: held["text"].append(0),
        lambda held: held["nearest"].__setitem__(0, 99),
        lambda held: held["maps"][0].__setitem__("shares", "x"),
        lambda held: held["maps"][0].__setitem__("picture", "../../secret.png"),
        lambda held: held["sheet"].__setitem__("picture", "none.webp"),
        lambda held: held["planes"]["pca"]["images"].__setitem__(0, [float("nan"), 0]),
        lambda held: held.__setitem__("maps", []),
    ],
)
def test_a_damaged_look_is_left_out_and_noted(tmp_path: Path, break_it) -> None:
    run = make_run(tmp_path / "run")
    write_look(run / "look", make_look(), told=TOLD)
    Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    path = run / "look" / "look.json"
    held = json.loads(path.read_text())
    break_it(held)
    path.write_text(json.dumps(held))
    told = " ".join(Page(write_report((run,))).texts)
    assert "look/look.json is damaged and left out" in told and "40 steps" in told


def test_keys_and_texts_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    look = make_look()
    look.texts[0], look.keys[0] = HOSTILE, "<svg onload=1>"
    write_look(run / "look", look, told=TOLD | {"evaluation": {"kind": "x", "name": "<u>"}})
    page = Page(write_report((run,)))
    assert not {"script", "u"} & set(page.tags) and "onerror=y>" not in page.source
    assert "<svg onload" not in page.source and "狐" in page.source
