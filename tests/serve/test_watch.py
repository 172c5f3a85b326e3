"""`mmtrain watch`: what the page asks for, who is answered, and mistakes in one line."""

import os
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mmtrain.cli import main
from mmtrain.report.render import render
from mmtrain.report.run_folder import read_run
from mmtrain.serve import watched
from mmtrain.serve.watch import build_app
from mmtrain.serve.watched import Watched
from tests.report.folders import make_run, write_metrics, write_probes


def parts(told: dict) -> dict[str, str]:
    return {key: html for section in told["sections"] for key, html in section["parts"]}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look for every question."""
    monkeypatch.setattr(watched, "_LEAST_PAUSE", 0.0)
    monkeypatch.setattr(watched, "_SHARE", float("inf"))


def test_a_run_that_comes_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "run"
    page = Watched([path])
    first = page.newest("")
    assert first["sections"] == [] and first["runs"][0]["kind"] == "missing"
    make_run(path)
    write_probes(path)
    second = page.newest(first["version"])
    shown = {"tiles", "training-Loss", "training-Speed", "evaluations", "faults"}
    assert shown <= set(parts(second))
    assert "25.0 %" in parts(second)["evaluations"] and "image truncated" in parts(second)["faults"]
    # Nothing new, nothing sent.
    third = page.newest(second["version"])
    assert third["sections"] is None and third["version"] == second["version"]
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "loss": 0.5}\n{"step": 42, "lo')
    fourth = page.newest(second["version"])
    changed = {key for key, html in parts(fourth).items() if parts(second).get(key) != html}
    assert changed == {"tiles", "training-Loss"}
    assert "half" not in str(parts(fourth).get("notes")), (
        "a line that is being written is no damage"
    )


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "later", "b")]
    make_run(paths[0])
    recipe = '[data]\ntrain = "a.tar"\n[[eval.zero_shot]]\nname = "held-out"\ndata = "a.tar"\n'
    (paths[0] / "recipe.toml").write_text(f"{recipe}[optim]\nlr = 1e-3\n")
    assert "held-out reads the training" in parts(Watched(paths[:1]).newest(""))["notes"]
    make_run(paths[2], top1=0.5, lr="2e-3")
    told = Watched(paths).newest("")
    colors = {run["name"]: run["color"] for run in told["runs"]}
    assert colors == {"a": "c0", "later": None, "b": "c1"}
    assert {"summary", "training-Loss", "zero_shot", "settings"} <= set(parts(told))
    assert "optim.lr" in parts(told)["settings"]
    # Of what the comparison explains, nothing stands there unexplained.
    explained = parts(told)["explained"]
    assert "Green" in explained and "95 % interval" in explained and "axis" not in parts(told)
    write_metrics(paths[2], 400)
    assert "logarithmic axis" in parts(Watched(paths).newest(""))["axis"]


def test_a_ninth_run_has_the_first_ones_colour_dashed_everywhere(tmp_path: Path) -> None:
    names = list("abcdefghi")
    table = render("live.html", {"part": "summary", "rows": [], "names": names})
    assert table.count('swatch c0"') == table.count('swatch c0 dashed"') == 1
    assert list(watched._colors([read_run(make_run(tmp_path / "run"))] * 9))[-1] == "c0 dashed"


def test_names_of_a_run_are_text(tmp_path: Path) -> None:
    """Whoever made the data does not write the page."""
    path = make_run(tmp_path / "run")
    (path / "bad_samples.jsonl").write_text(
        '{"key": "<script>", "reason": "<img src=x onerror=1>"}\n'
    )
    told = Watched([path]).newest("")
    assert "<img" not in str(told["sections"]) and "<script" not in str(told["sections"])


def test_names_that_have_no_utf8_are_shown(tmp_path: Path) -> None:
    """A folder of other bytes, and half a character of what the data call a sample."""
    path = make_run(tmp_path / os.fsdecode(b"run\xff"))
    (path / "bad_samples.jsonl").write_text('{"key": "\\ud800", "reason": "none"}\n')
    client = TestClient(build_app([path]), "http://127.0.0.1:8001")
    told = client.get("/api/runs").json()
    assert told["title"] == "run\udcff" and "\ud800" in parts(told)["faults"]


def test_the_page_and_who_is_answered(tmp_path: Path) -> None:
    client = TestClient(build_app([tmp_path / "run"]), "http://127.0.0.1:8001")
    page = client.get("/")
    assert page.status_code == 200 and "mmtrain watch" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert client.get("/api/runs?seen=x").json()["title"] == "run"
    assert client.get("/api/runs", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/api/runs", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/runs").status_code == 405
    assert client.get("/recipe.toml").json() == {"error": "not found"}


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, told in (
            ([str(file)], f"run = {file} is no folder"),
            ([str(file / "run")], f"cannot come: {file} is no folder"),
            ([str(tmp_path), f"{tmp_path}/"], "is named twice"),
            ([str(tmp_path), "--port", port], f"port = {port} cannot be listened on"),
            ([str(tmp_path), "--port", "70000"], "at most 65535"),
            ([str(tmp_path), "--host", "a..b"], "; name an address of this machine with --host"),
            (["s3://bucket/run"], "is an address; name a folder of this machine"),
        ):
            assert main(["watch", *words]) == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and told in lines[0], lines
