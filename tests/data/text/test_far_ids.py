"""One damaged number in a tokenizer's file is a line; the library would take all memory for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mmtrain
from mmtrain.cli import main
from mmtrain.data.text.clip_bpe import ClipBpe
from mmtrain.data.text.codecs import JsonCodec
from mmtrain.data.text.far_ids import MOST_IDS
from mmtrain.data.text.json_tokenizer import JsonTokenizer
from mmtrain.errors import UsageError

FAR = (MOST_IDS, 1 << 30, (1 << 32) - 2)


@pytest.mark.parametrize("reader", [ClipBpe, JsonTokenizer, JsonCodec])
@pytest.mark.parametrize("number", FAR)
def test_a_tokenizers_own_file(reader: Any, number: int) -> None:
    content = json.loads(ClipBpe().serialize())
    content["model"]["vocab"]["cat</w>"] = number
    with pytest.raises(ValueError, match=f"gives 'cat</w>' the id {number}"):
        reader(json.dumps(content).encode())


def test_a_folder_in_hugging_faces_form(tmp_path: Path) -> None:
    number = FAR[-1]
    run, folder = tmp_path / "run", tmp_path / "hf"
    words = ["configs/debug_clip.toml", "--run-dir", str(run), "--train.steps", "1"]
    assert main(["train", *words]) == 0
    assert main(["export", str(run), "--format", "hf", "--out", str(folder)]) == 0
    for name in ("vocab.json", "tokenizer.json"):
        if not (path := folder / name).is_file():
            continue
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"] if name == "tokenizer.json" else content
        vocabulary["cat</w>"] = number
        path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"gives 'cat</w>' the id {number}"):
        mmtrain.load(folder)
    name = "preprocessor_config.json"
    for key, value in (("image_mean", ["..", 0, 0]), ("image_std", [[0.5], 1, 1])):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken, dirs_exist_ok=True)
        content = json.loads((broken / name).read_text())
        (broken / name).write_text(json.dumps(content | {key: value}))
        with pytest.raises(UsageError, match=f"{key} = .* must be numbers"):
            mmtrain.load(broken)
