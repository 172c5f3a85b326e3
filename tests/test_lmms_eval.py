"""mmtrain as a model of lmms-eval: by its interface everywhere, by its runner where it is there."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mmtrain.cli import main
from tests.tasks.test_vqa_run import write_recipe

TOOL = Path(__file__).parent.parent / "tools/lmms_eval_mmtrain.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    path = write_recipe(folder)
    assert main(["train", str(path), "--run-dir", str(folder / "run"), "--train.steps", "2"]) == 0
    return str(folder / "run")


@dataclass
class GenerationResult:
    """As lmms-eval publishes it."""

    text: Any
    token_counts: Any = None


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file, over the names of lmms-eval that it takes."""
    parts = {
        "lmms_eval.api.model": SimpleNamespace(lmms=type("lmms", (), {"task_dict": None})),
        "lmms_eval.api.instance": SimpleNamespace(GenerationResult=GenerationResult),
        "lmms_eval.models.registry_v2": SimpleNamespace(ModelManifest=SimpleNamespace),
    }
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, name, part)
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    spec = importlib.util.spec_from_file_location("lmms_eval_mmtrain", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def request(context: str, second: Any, image: Any) -> SimpleNamespace:
    """What the runner hands over: the last four find the images."""
    return SimpleNamespace(args=(context, second, lambda doc: doc, 0, "t", "test"), image=image)


def asked(model: Any, kind: str, *requests: SimpleNamespace) -> list[Any]:
    said = []
    for one in requests:
        model.task_dict = {"t": {"test": [one.image]}}
        said += getattr(model, kind)([one])
    return said


def test_it_says_what_ask_says(tool: ModuleType, model: str, tmp_path: Path, capsys) -> None:
    image = Image.new("RGB", (16, 16), "red")
    image.save(tmp_path / "i.png")
    for head in ("classify", "generate"):
        words = ["--model", model, "--image", str(tmp_path / "i.png"), "--head", head]
        assert main(["ask", *words, "--question", "Is it red?"]) == 0
        line = capsys.readouterr().out.splitlines()[1]
        lmms = tool.Mmtrain(model=model, head=head, device="cpu", max_batch_size=None)
        plain = {"temperature": 0, "do_sample": False, "until": ["zz"], "max_new_tokens": 99}
        (said,) = asked(lmms, "generate_until", request("Is it red?", plain, [image]))
        assert said == line[2:22].strip()
        if said:
            cut = {"until": said[0]}
            assert asked(lmms, "generate_until", request("Is it red?", cut, [image])) == [""]


def test_a_likelihood_is_that_of_choosing(tool: ModuleType, model: str) -> None:
    """The smallest is the likeliest, and the greedy answer is told."""
    lmms = tool.Mmtrain(model=model, head="generate", device="cpu")
    image = Image.new("RGB", (16, 16), "red")
    found = asked(
        lmms,
        "loglikelihood",
        *(request("Is it red?", text, [image]) for text in (" red", "no", "maybe no")),
        request("Is it red?", lambda doc: "no", []),
    )
    losses = [one.text[0] for one in found]
    assert all(loss > 0 for loss in losses) and len({*losses}) == 4
    (answer,) = asked(lmms, "generate_until", request("Is it red?", {}, [image]))
    if answer:
        ((loss, greedy),) = [
            one.text for one in asked(lmms, "loglikelihood", request("Is it red?", answer, [image]))
        ]
        assert loss <= min(losses[:3]) or not greedy


def test_what_cannot_be_had_is_refused(tool: ModuleType, model: str) -> None:
    for words, told in (
        ({"batch_size": 8}, "batch_size = 8"),
        ({"head": "both"}, "head = both"),
        ({"precision": "fp4"}, "precision = fp4"),
        ({"heads": "x"}, "heads are unknown"),
    ):
        with pytest.raises(ValueError, match=told):
            tool.Mmtrain(model=model, device="cpu", **words)
    lmms = tool.Mmtrain(model=model, device="cpu")
    image = Image.new("RGB", (16, 16))
    for options, images, told in (
        ({"temperature": 0.7}, [image], "temperature = 0.7"),
        ({"do_sample": True}, [image], "do_sample = True"),
        ({"num_beams": 4}, [image], "num_beams = 4"),
        ({}, [image, image], "a question has 2 images"),
        ({}, ["film.mp4"], "a str is no image"),
    ):
        with pytest.raises(ValueError, match=told):
            asked(lmms, "generate_until", request("what?", options, images))
    classify = tool.Mmtrain(model=model, head="classify", device="cpu")
    with pytest.raises(ValueError, match="likelihoods need head=generate"):
        asked(classify, "loglikelihood", request("what?", "no", [image]))


TASK = """
task: tiny_TYPE
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: FOLDER/test.parquet
test_split: test
output_type: TYPE
doc_to_visual: !function functions.see
doc_to_text: !function functions.ask
doc_to_target: !function functions.right
doc_to_choice: ["red", "green", "blue"]
generation_kwargs:
  max_new_tokens: 8
metric_list:
  - metric: METRIC
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """
def see(doc): return [doc["image"].convert("RGB")]
def ask(doc, lmms_eval_specific_kwargs=None): return "What color is it?"
def right(doc): return 0
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="needs lmms-eval")
def test_its_own_runner(model: str, tmp_path: Path) -> None:
    import datasets

    for number in range(3):
        Image.new("RGB", (16, 16), ("red", "green", "blue")[number]).save(
            tmp_path / f"{number}.png"
        )
    # The runner looks at a set without its images, which must not be left without columns.
    columns = {"image": [str(tmp_path / f"{n}.png") for n in range(3)], "number": [0, 1, 2]}
    rows = datasets.Dataset.from_dict(columns)
    rows.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "test.parquet"))
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    kinds = {"generate_until": "exact_match", "multiple_choice": "acc"}
    for kind, metric in kinds.items():
        text = TASK.replace("TYPE", kind).replace("METRIC", metric)
        (tmp_path / f"{kind}.yaml").write_text(text.replace("FOLDER", str(tmp_path)))
    words = ["--model", "mmtrain", "--model_args", f"model={model},head=generate,device=cpu"]
    words += ["--tasks", ",".join(f"tiny_{kind}" for kind in kinds)]
    words += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, TOOL, *words], env=env, capture_output=True, check=False)
    (result,) = (tmp_path / "out").rglob("*results.json")
    assert json.loads(result.read_text())["results"].keys() == {f"tiny_{kind}" for kind in kinds}, (
        done
    )
