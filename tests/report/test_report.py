import base64
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtrain.errors import UsageError
from mmtrain.report import write_report
from mmtrain.report.facts import phase_borders, run_length
from mmtrain.report.run_folder import read_run
from tests.report.folders import make_run, write_answers, write_metrics, write_probes

_VOID = {"meta", "img", "br", "link", "input"}


class Page(html.parser.HTMLParser):
    """What a browser would find: texts, pictures, whatever is fetched; tags must match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.images: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += [" ".join(data.split())] if data.strip() and "style" not in self.open else []


def test_one_run_becomes_its_page(tmp_path: Path) -> None:
    path = write_report((make_run(tmp_path / "run-7"),))
    assert path == tmp_path / "run-7" / "report.html"
    page = Page(path)
    told = " ".join(page.texts)
    for part in (
        "run-7",
        "40 steps · 1,280 samples seen · 5 epochs",
        "changed at step 20 optim.lr 0.001 → 0.0005",
        "held-out",
        "zero-shot top-1, 2 × chance",
        "25.0 %",
        "50.0 %",
        "Image to text",
        "Loss",
        "Gradient norm",
        "held-out, top-1",
        "1 × image truncated",
        "0007",
        "off by 4.2 % on average",
        "37.5 % 61.3 %",
        "No maps are here. The recipe names no data to evaluate on",
        "commit abc",
        "beef",
        "seed = 1",
        "✗ a grey wolf",
        "rank 7 of 1,200",
    ):
        assert part in told, part


def test_the_page_shows_the_pictures_and_fetches_nothing(tmp_path: Path) -> None:
    page = Page(write_report((make_run(tmp_path / "run"),)))
    assert len(page.images) == 20
    for uri in page.images:
        kind, _, data = uri.partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (40, 30)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\((?!data:image/webp;base64,)", page.source)
    assert "prefers-color-scheme: dark" in page.source and "width=device-width" in page.source


def test_classifiers_on_frozen_features_are_no_zero_shot(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other")
    write_probes(run)
    told = " ".join(Page(write_report((run,))).texts)
    shares = "41.0 % 30.1 – 54.3 73.0 % 61.0 – 82.9 40.0 % 60 8 1,234"
    assert f"linear probe {shares} C = 0.316, best of 9" in told
    assert f"kNN {shares} 20 neighbours, temperature 0.07" in told
    assert [one.name for one in read_run(run).of_kind("zero-shot")] == ["held-out"]
    told = " ".join(Page(write_report((run, other), out=tmp_path / "c.html")).texts)
    assert "probe top-1 41.0 % 30.1 – 54.3 –" in told


def test_answers_are_shown_with_what_the_model_looked_at(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = Page(write_report((run,)))
    write_answers(run)
    page = Page(write_report((run,)))
    assert "Questions about images" in page.texts and "answers, accuracy" in page.texts
    assert {"87.5 %", "62.9 %", "of 1,600 questions right"} <= set(page.texts)
    assert "other 81.0 %, yes/no 93.0 %" in page.texts
    assert {"91 % sure", "✗ a grey wolf", "Right", "Wrong"} <= set(page.texts)
    # Two right and two wrong ones, each with its map.
    assert len(page.images) - len(before.images) == 8
    assert not (set(page.images) & {""})
    other = make_run(tmp_path / "other")
    assert "Questions about images" in Page(write_report((run, other))).texts


def test_a_run_of_questions_lacks_no_maps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lacking = "Where the model looks"
    assert lacking in Page(write_report((run,))).texts
    (run / "recipe.toml").write_text("[vqa]\nmin_count = 2\n")
    assert lacking not in Page(write_report((run,))).texts


def test_several_runs_become_one_comparison(tmp_path: Path) -> None:
    runs = (
        make_run(tmp_path / "adamw", top1=0.2),
        make_run(tmp_path / "muon", top1=0.3, num_steps=60, lr="2e-3"),
    )
    path = write_report(runs, out=tmp_path / "both.html")
    assert path == tmp_path / "both.html" and not (runs[0] / "report.html").exists()
    page = Page(path)
    told = " ".join(page.texts)
    assert "2 runs compared" in told
    assert "optim.lr 0.001 0.002" in told and "2 settings are equal" in told
    assert re.search(r'class="num best">30.0 %', page.source)
    assert re.search(r'class="num">20.0 %', page.source)
    loss = re.search(r'<svg[^>]*aria-label="Loss".*?</svg>', page.source, re.DOTALL)
    assert loss is not None
    assert len(re.findall(r'class="line c[01]"', loss.group())) == 2
    assert "step 40\nadamw: 2.5" in loss.group() and "muon: " in loss.group()
    assert re.search(r'aria-label="held-out, top-1"', page.source)


def test_a_comparison_is_by_default_in_the_first_folder(tmp_path: Path) -> None:
    runs = (make_run(tmp_path / "a"), make_run(tmp_path / "b"))
    own = write_report(runs[:1]).read_bytes()
    assert write_report(runs, out=None) == tmp_path / "a" / "comparison.html"
    assert (tmp_path / "a" / "report.html").read_bytes() == own


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = (make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run"))
    told = Page(write_report(runs, out=tmp_path / "c.html")).texts
    assert "x/run" in told and "y/run" in told


def test_runs_that_share_nothing_are_compared(tmp_path: Path) -> None:
    whole, bare = make_run(tmp_path / "whole"), tmp_path / "bare"
    bare.mkdir()
    (bare / "recipe.toml").write_text("not [ toml")
    told = " ".join(Page(write_report((whole, bare), out=tmp_path / "c.html")).texts)
    assert "No step logged yet" in told and "25.0 % –" in told


def test_many_runs_keep_apart(tmp_path: Path) -> None:
    runs = tuple(make_run(tmp_path / f"run-{number:02d}", num_steps=6) for number in range(11))
    page = Page(write_report(runs, out=tmp_path / "c.html"))
    loss = re.search(r'<svg[^>]*aria-label="Loss".*?</svg>', page.source, re.DOTALL)
    assert loss is not None
    styles = re.findall(r'<path class="(line [^"]*)"', loss.group())
    assert len(set(styles)) == 11, "two runs look alike"


@pytest.mark.parametrize("break_it", ["cut", "empty", "binary", "list"])
def test_half_written_lines_are_left_out_and_noted(tmp_path: Path, break_it: str) -> None:
    run = make_run(tmp_path / "run")
    damage = {
        "cut": b'{"step": 41, "lo',
        "empty": b"\n\n",
        "binary": b"\xff\xfe\x00\n",
        "list": b"[1]\n",
    }
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(damage[break_it])
    told = " ".join(Page(write_report((run,))).texts)
    assert "40 steps" in told
    assert ("1 line of metrics.jsonl could not be read" in told) == (break_it != "empty")


def test_a_step_done_twice_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    again = json.dumps(json.loads(lines[29]) | {"loss": 77.0})
    (run / "metrics.jsonl").write_text("\n".join([*lines[:30], again, *lines[30:]]) + "\n")
    metrics = read_run(run).metrics
    assert [row["step"] for row in metrics] == list(range(1, 41))
    assert metrics[29]["loss"] == 77.0


def test_what_is_no_number_is_a_gap(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, value in zip(
        rows[10:], [None, float("nan"), float("inf"), "x", True, 10**400], strict=False
    ):
        row["loss"] = value
        row["grad_norm"] = None
    rows[-1]["samples_seen"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report((run,)))
    drawings = " ".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert not re.search(r"\bnan\b|\binf\b|None", drawings)


def test_a_column_without_any_number_has_no_curve(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "lr": 0.1}\n')
    page = Page(write_report((run,)))
    assert re.findall(r'aria-label="([^"]*)"', page.source) == ["Learning rate"]


def test_a_huge_run_makes_a_small_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_metrics(run, 100_000)
    path = write_report((run,))
    assert path.stat().st_size < 300_000
    told = " ".join(Page(path).texts)
    assert "100,000 steps" in told and "100k" in told


HOSTILE = '<script>alert("x")</script>&amp; \'"><img src=x onerror=y> 狐 \ud83e'


def test_captions_names_and_keys_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>run", text=HOSTILE)
    other = make_run(tmp_path / "other")
    (run / "recipe.toml").write_text('a = "</pre><script>1</script>"')
    (run / "run.json").write_text(json.dumps({"<i>commit": "<u>x"}))
    bad = {"key": "<svg onload=1>", "shard": "</td>", "reason": "<em>"}
    (run / "bad_samples.jsonl").write_text(json.dumps(bad))
    (run / "bad_batches.jsonl").write_text(json.dumps({"step": 1, "loss": "nan", "keys": ["<s>"]}))
    (run / "eval" / "held-out.json").rename(run / "eval" / "<h1>.json")
    (run / "eval" / "held-out.history.jsonl").rename(run / "eval" / "<h1>.history.jsonl")
    for path in (write_report((run,)), write_report((run, other), out=tmp_path / "c.html")):
        page = Page(path)
        assert not {"script", "b", "i", "u", "em", "s"} & set(page.tags) - {"b"}
        assert page.source.count("<h1") == 1
        assert "<b>run" not in page.source and "onerror=y>" not in page.source
    assert "狐" in Page(run / "report.html").source


def test_damaged_results_are_noted_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    folder = run / "eval"
    (folder / "torn.json").write_text('{"top1": 0.')
    (folder / "list.json").write_text("[]")
    (folder / "lacks.json").write_text('{"top1": 0.5, "top5": null, "num_classes": 3}')
    (folder / "probe.json").write_text('{"accuracy": 0.5, "note": "x"}')
    (folder / "odd.json").write_text('{"examples": {"best": [{"key": 1}, 3], "worst": 4}}')
    result = {"top1": 0.5, "top5": 0.5, "num_samples": 4, "num_classes": 2, "templates": 7}
    for name, odd in (
        ("no-classes", {"num_classes": 0}),
        ("sure", {"calibration": [1], "reliability": [{"count": 0, "confidence": 1, "top1": 1}]}),
        ("probed", {"method": "linear probe", "strength": 1, "tried": 5}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(result | odd))
    (run / "run.json").write_text("{")
    (run / "recipe.toml").write_text(f"a = {'[' * 2000}{']' * 2000}\nb = {'1' * 5000}")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 1{"0" * 400}, "loss": 1}}\n')
        file.write('{"step": 41, "loss": 1e308}\n{"step": 42, "loss": -1e308}\n')
    (folder / "held-out" / "best-01.webp").unlink()
    page = Page(write_report((run,)))
    told = " ".join(page.texts)
    assert "torn.json is damaged" in told and "run.json is damaged" in told
    assert "lacks.json has no figure top5, num_samples" in told
    assert "no-classes.json has no figure num_classes" in told and "42 steps" in told
    assert "odd.json has examples that cannot be read" in told
    assert "accuracy 0.5" in told
    assert "picture missing" in told and len(page.images) == 19


@pytest.mark.parametrize(
    "facts",
    [
        {"data": {"num_samples": "many", "batches_per_epoch": None}, "phases": {"2": 3, "x": {}}},
        {"data": 5, "phases": {"2": {"first_step": "x"}}, "command": ["a"], "ranks": "2"},
    ],
)
def test_facts_of_another_form_are_left_out(tmp_path: Path, facts: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps(facts))
    write_metrics(tmp_path, 3)
    run = read_run(tmp_path)
    assert run_length(run) == "3 steps · 96 samples seen" and phase_borders(run) == []


def test_pictures_outside_of_the_folder_are_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (3, 3)).save(secret)
    path = run / "eval" / "held-out.json"
    content = json.loads(path.read_text())
    rows = content["examples"]["best"]
    rows[0]["picture"], rows[1]["picture"] = "../../secret.png", str(secret)
    rows[2]["picture"], rows[3]["picture"] = "held-out.json", "a\0b.png"
    path.write_text(json.dumps(content))
    assert len(Page(write_report((run,))).images) == 16


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no metrics.jsonl and no recipe.toml"),
        (lambda path: path.write_text(""), "is no folder"),
    ],
)
def test_a_wrong_path_is_one_line(tmp_path: Path, make, told: str) -> None:
    path = tmp_path / "nothing"
    make(path)
    with pytest.raises(UsageError) as caught:
        write_report((make_run(tmp_path / "run"), path))
    assert str(caught.value) == f"run = {path} {told}; name a run folder"


def test_other_mistakes_are_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match=r"named twice; name every run once"):
        write_report((run, tmp_path / "." / "run"))
    with pytest.raises(UsageError, match=r"out = .*cannot be written: No such file"):
        write_report((run,), out=tmp_path / "none" / "a.html")
    with pytest.raises(UsageError, match=r"name at least one"):
        write_report(())
