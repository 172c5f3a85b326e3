"""Whatever stands in another library's config is read, or refused in a line."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.interop.hf_clip_config import config_from_hf
from mmtrain.interop.hf_clip_files import read_weights
from mmtrain.interop.hf_decoder_config import decoder_config_from_hf
from mmtrain.interop.hf_decoder_files import read_folder_tokenizer
from mmtrain.interop.hf_preprocess import read_preprocess
from mmtrain.interop.open_clip_config import config_from_open_clip
from mmtrain.interop.timm import read_timm_interpolation, read_timm_tower, vision_config_from_timm
from tests.interop.decoder_folders import DECODERS
from tests.interop.peers import tiny_open_clip
from tests.interop.test_hf_clip import CONFIGS
from tests.interop.test_timm import SHAPES, TINY
from tests.interop.test_timm_files import save

ODD: tuple[Any, ...] = (
    *(-1, 0, 1, 3, 10**12, 2**64, 0.5, -2.0, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", "x", "\0", "../../x", [], {}, [None], [1, 2], [0, 0], [float("inf")] * 3, {"a": 1}, True),
    None,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value of a JSON document may stand."""
    if above:
        yield above
    inside = value.items() if isinstance(value, dict) else ()
    inside = list(enumerate(value))[:2] if isinstance(value, list) else inside
    for name, each in inside:
        yield from places(each, (*above, name))


def spoilt(content: Any) -> Iterator[tuple[str, Any]]:
    """A document with one odd value, for each place and value."""
    for place, value in itertools.product(places(content), ODD):
        copy = json.loads(json.dumps(content))
        into = copy
        for name in place[:-1]:
            into = into[name]
        into[place[-1]] = value
        yield f"{place} = {value!r}", copy


def check(read: Callable[[Any], Any], content: Any) -> int:
    """How many odd ones are refused, each in a line."""
    refused = 0
    for told, odd in spoilt(content):
        try:
            read(odd)
        except UsageError as error:
            assert str(error) and "\n" not in str(error), told
            refused += 1
        except Exception as error:
            raise AssertionError(told) from error
    return refused


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_transformers_towers(name: str) -> None:
    content = CONFIGS[name] | {"model_type": name}
    assert check(config_from_hf, content) > 100


@pytest.mark.parametrize("name", ["gpt2", "llama grouped, wide heads"])
def test_transformers_decoders(name: str) -> None:
    kind, fields = DECODERS[name]
    content = fields | {"model_type": "gpt2" if kind == "GPT2Config" else "llama"}
    assert check(decoder_config_from_hf, content) > 100


def test_open_clips_own_towers() -> None:
    content = tiny_open_clip() | {"init_logit_scale": 2.0, "quick_gelu": False}
    content["vision_cfg"] |= {"head_width": 16, "mlp_ratio": 4.0, "pool_type": "tok"}
    assert check(config_from_open_clip, content) > 200


def test_open_clips_towers_of_timm() -> None:
    named = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear"}
    content = tiny_open_clip()
    content["vision_cfg"] = named | {"image_size": 224, "timm_drop_path": 0.0}
    config_from_open_clip(content)
    assert check(config_from_open_clip, content) > 200


@pytest.mark.parametrize("shape", ["clip", "siglip", "dinov2 registers", "qk norm"])
def test_timms_arguments(shape: str) -> None:
    assert check(vision_config_from_timm, TINY | SHAPES[shape] | {"mlp_ratio": 4.0}) > 100


def test_timms_folder(tmp_path: Path) -> None:
    """Means, sizes and the rest of pretrained_cfg, which no argument holds."""
    save(tmp_path / "ours", "clip")
    folder = tmp_path / "timm"
    assert not main(["export", str(tmp_path / "ours"), "--out", str(folder), "--format", "timm"])
    path = folder / "config.json"
    content = json.loads(path.read_text())

    def read(odd: Any) -> None:
        path.write_text(json.dumps(odd))
        read_timm_tower(folder)
        read_timm_interpolation(folder)

    read(content)
    assert check(read, content) > 200
    pixels = content["pretrained_cfg"]
    for odd in ({"mean": [0.5]}, {"std": [0.5, 0.5, 0.0]}, {"mean": [0.5, 0.5, "0.5"]}):
        path.write_text(json.dumps(content | {"pretrained_cfg": pixels | odd}))
        with pytest.raises(UsageError, match=f"config.json: pretrained_cfg: .*{next(iter(odd))}"):
            read_timm_tower(folder)
    for size in ([3, 32], [3, 32, "32"], [3, 0, 0], [3, 64, 64], [3, 32, 48]):
        path.write_text(json.dumps(content | {"pretrained_cfg": pixels | {"input_size": size}}))
        with pytest.raises(UsageError, match=r"config\.json: .*(input_size|img_size|pos_embed)"):
            read_timm_tower(folder)


ADDED = {"content": "<end>", "special": True, "lstrip": False, "rstrip": False}
BESIDE: dict[str, Any] = {
    "generation_config.json": {"eos_token_id": [1, 0], "bos_token_id": 0},
    "special_tokens_map.json": {"eos_token": ADDED, "additional_special_tokens": ["<end>"]},
    "added_tokens.json": {"<end>": 1},
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<end>",
        "added_tokens_decoder": {"1": ADDED},
    },
}
"""What may stand beside a decoder's config.json, as a whole and in parts."""


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_a_decoders_config(name: str, tmp_path: Path) -> None:
    rust = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
    rust.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 1}')

    def read(odd: Any) -> None:
        (tmp_path / name).write_text(json.dumps(odd))
        tokenizer = read_folder_tokenizer(tmp_path)
        assert tokenizer is not None and tokenizer.encode("a")
        for end_id in tokenizer.end_ids:
            tokenizer.spelled(end_id)

    read(BESIDE[name])
    check(read, BESIDE[name])
    for odd in ODD:
        if isinstance(odd, dict):
            continue
        with pytest.raises(UsageError, match=rf"{name}.* is no JSON object"):
            read(odd)


def test_an_image_processors_file(tmp_path: Path) -> None:
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "default_to_square": False,
        "do_pad": True,
        "pad_size": {"height": 32, "width": 32},
    }
    sizes = {"image_size": 32, "patch_size": 8}
    config = config_from_hf({"model_type": "clip", "vision_config": sizes})

    def read(odd: Any) -> None:
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": odd}))
        read_preprocess(tmp_path, config, model_type="clip")

    read(content)
    assert check(read, content) > 200


DEEP = '{"a": ' * 100_000
NO_JSON = ["", "{", "[]", "null", "5", DEEP, "\ufeff"]


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
@pytest.mark.parametrize("name", ["config.json", "open_clip_config.json"])
def test_a_config_that_is_none(name: str, text: str, tmp_path: Path, capsys: Any) -> None:
    """As a model, as a start, as a run's export."""
    (tmp_path / name).write_text(text)
    for words in (
        ["summary", str(tmp_path)],
        ["convert", str(tmp_path), str(tmp_path / "new"), "--format", "hf"],
        ["ask", "--model", str(tmp_path), "--image", "x.png", "--question", "what"],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("mmtrain: error: ") and error.count("\n") == 1, error


TENSOR = {"a": torch.zeros(2), "b": torch.ones(3)}
MAPS: list[tuple[Any, str]] = [
    ({"a": "one.safetensors", "b": "none.safetensors"}, "none.safetensors"),
    ({"a": "one.safetensors", "b": "one.safetensors", "c": "one.safetensors"}, "names c"),
    ({"a": 1}, "must name a file for each tensor"),
    ({"a": None}, "must name a file for each tensor"),
    ({"a": ["one.safetensors"]}, "must name a file for each tensor"),
    (["one.safetensors"], "weight_map"),
    ({"a": "../outside.safetensors"}, "outside"),
    ({"a": "/OUTSIDE/outside.safetensors"}, "outside"),
    ({"a": "../one.safetensors"}, "weight_map names '../one"),
    ({"a": ".."}, "weight_map"),
    ({"a": ""}, "weight_map"),
    ({"a": "."}, "weight_map"),
    ({"a": "one\0.safetensors"}, "weight_map"),
    ({"a": "part/one.safetensors"}, "weight_map"),
    ({}, "weight_map"),
    (None, "weight_map"),
]


@pytest.mark.parametrize(("weight_map", "told"), MAPS, ids=range(len(MAPS)))
def test_an_index_of_weights_names_files_beside_it(
    weight_map: Any, told: str, tmp_path: Path
) -> None:
    """Wrong, missing, or of another folder: such a file would be another model's."""
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    save_file(TENSOR, folder / "one.safetensors")
    save_file(TENSOR, tmp_path / "outside.safetensors")
    text = json.dumps({"weight_map": weight_map}).replace("/OUTSIDE", str(tmp_path))
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UsageError, match=told) as caught:
        read_weights(folder)
    assert "\n" not in str(caught.value)
