"""transformers' CLIP, SigLIP and SigLIP 2 through our core, and our models through theirs."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mmtrain
from mmtrain.data.images.transforms import PreprocessConfig, eval_transform
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical
from mmtrain.interop.hf_clip import from_hf, to_hf
from mmtrain.interop.hf_clip_config import config_from_hf, config_to_hf
from mmtrain.loading import export_model, read_package, save_model
from mmtrain.models import Clip
from mmtrain.models.named import named_model
from tests.interop.peers import (
    CAPTIONS,
    ROOT,
    assert_same_features,
    assert_same_tensors,
    images,
    randomise,
    unit,
)

BLOCKS = {
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
VISION = BLOCKS | {"image_size": 32, "patch_size": 8}
TEXT = BLOCKS | {"max_position_embeddings": 24}
SIGLIP_TEXT = TEXT | {"vocab_size": 1000}

CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"vision_config": VISION, "text_config": TEXT | {"hidden_size": 36}},
    "clip gelu": {
        "vision_config": VISION | {"hidden_act": "gelu"},
        "text_config": TEXT | {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    },
    "clip legacy eos": {
        "vision_config": VISION,
        "text_config": TEXT | {"eos_token_id": 2, "bos_token_id": 0},
        "logit_scale_init_value": 3.0,
    },
    "siglip": {"vision_config": VISION, "text_config": SIGLIP_TEXT},
    "siglip 384/14": {
        "vision_config": VISION | {"image_size": 38, "hidden_act": "gelu"},
        "text_config": SIGLIP_TEXT | {"projection_size": 48, "intermediate_size": 100},
    },
    "siglip2": {
        "vision_config": BLOCKS | {"patch_size": 8, "num_patches": 16},
        "text_config": SIGLIP_TEXT,
    },
}


def build_theirs(name: str) -> torch.nn.Module:
    import transformers

    kind = name.split()[0]
    config, model = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel),
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
        "siglip2": (transformers.Siglip2Config, transformers.Siglip2Model),
    }[kind]
    fields = dict(CONFIGS[name])
    if kind == "clip":
        fields["projection_dim"] = 20
    torch.manual_seed(0)
    return randomise(model(config(**fields)))


def json_of(model: torch.nn.Module) -> dict[str, Any]:
    """config.json as save_pretrained writes it."""
    return json.loads(model.config.to_json_string(use_diff=False))


def pixels_for(size: int) -> Tensor:
    transform = eval_transform(PreprocessConfig(image_size=size))
    return torch.stack([transform(image) for image in images()])


@torch.no_grad()
def their_features(model: torch.nn.Module, normalised: Tensor, tokens: Tensor):
    kind = model.config.model_type
    if kind == "siglip2":
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        patches = torch.stack([convert_image_to_patches(image, 8) for image in normalised])
        B, P = patches.shape[:2]
        fields = {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(B, P, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * B),
        }
    else:
        fields = {"pixel_values": normalised}
    image = model.get_image_features(**fields).pooler_output
    text = model.get_text_features(input_ids=tokens).pooler_output
    return unit(image), unit(text)


def tokens_for(name: str) -> Tensor:
    if name.startswith("clip"):
        return build_tokenizer(TokenizerConfig(context_length=24))(CAPTIONS)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 1000, (6, 24), generator=generator)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_features_are_transformers(name):
    theirs = build_theirs(name)
    config, tensors = from_hf(json_of(theirs), theirs.state_dict())
    with torch.device("meta"):
        ours = Clip(config)
    ours.load_state_dict(tensors, assign=True)
    pixels, tokens = pixels_for(config.vision.image_size), tokens_for(name)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.vision.mean, config.vision.std))
    image, text = their_features(theirs, (pixels.float() / 255 - mean) / std, tokens)
    assert_same_features(ours.encode_image(pixels), image)
    assert_same_features(ours.encode_text(tokens), text)
    assert ours.logit_scale.item() == theirs.logit_scale.item()
    if ours.logit_bias is not None:
        assert ours.logit_bias.item() == theirs.logit_bias.item()


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_come_back_bit_for_bit_and_the_config_equal(name):
    theirs = build_theirs(name)
    state = theirs.state_dict()
    config, tensors = from_hf(json_of(theirs), state)
    data, back = to_hf(config, tensors, kind=theirs.config.model_type)
    assert_same_tensors(back, state)
    again, ours = from_hf(data, back)
    assert canonical(again) == canonical(config)
    assert_same_tensors(ours, tensors)
    rebuilt = type(theirs.config)(**data)
    for tower in ("vision_config", "text_config"):
        for field in {**BLOCKS, "hidden_act": 0, "layer_norm_eps": 0, "patch_size": 0}:
            if hasattr(getattr(theirs.config, tower), field):
                want = getattr(getattr(theirs.config, tower), field)
                assert getattr(getattr(rebuilt, tower), field) == want, field


def test_names_of_published_models_can_be_written():
    """A whole ViT-B/32 with OpenAI's activation is transformers' default CLIP."""
    import transformers

    data = config_to_hf(named_model("ViT-B-32-quickgelu"))
    theirs = transformers.CLIPConfig(**data)
    default = transformers.CLIPConfig()
    for tower in ("vision_config", "text_config"):
        fields = getattr(default, tower).to_dict()
        for field in (*BLOCKS, "hidden_act", "layer_norm_eps", "eos_token_id"):
            if field in fields and field != "eos_token_id":
                assert getattr(getattr(theirs, tower), field) == fields[field], field
    assert theirs.projection_dim == default.projection_dim
    # The same value as was written, not only the same function.
    assert config_from_hf(data) == named_model("ViT-B-32-quickgelu")
    siglip = transformers.SiglipConfig(**config_to_hf(named_model("ViT-B-16-SigLIP")))
    assert siglip.vision_config.num_hidden_layers == 12


def save_theirs(folder: Path, name: str) -> torch.nn.Module:
    """A folder as people download it."""
    import transformers

    theirs = build_theirs(name)
    theirs.save_pretrained(folder)
    size = theirs.config.vision_config.image_size
    if name.startswith("clip"):
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
    else:
        processor = transformers.SiglipImageProcessor(size={"height": size, "width": size})
    processor.save_pretrained(folder)
    return theirs


def write_sentence_piece(folder: Path) -> None:
    pieces = ROOT / "mmtrain/demo/debug/sentencepiece.model"
    (folder / "spiece.model").write_bytes(pieces.read_bytes())
    config = {"tokenizer_class": "SiglipTokenizer", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_clip_vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt from the table that open_clip's wheel carries."""
    import open_clip

    words = dict(open_clip.tokenizer.SimpleTokenizer().encoder)
    words["<|startoftext|>"] = words.pop("<start_of_text>")
    words["<|endoftext|>"] = words.pop("<end_of_text>")
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')


@torch.no_grad()
def assert_equal_everywhere(ours: Path, theirs: Path) -> None:
    """From image files and captions to features, theirs by transformers' functions alone."""
    import transformers

    model, preprocess, tokenizer = mmtrain.load(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = transformers.AutoModel.from_pretrained(theirs).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(theirs, use_fast=False)
        words = transformers.AutoTokenizer.from_pretrained(theirs)
        # Sizes whose centre crop leaves an even number of pixels: theirs rounds down, ours to even.
        sizes = ((64, 64), (96, 96), (288, 96), (64, 192))
        drawn = [one.convert("RGB").resize(s) for one, s in zip(images(), sizes, strict=True)]
        normalised = processor(drawn, return_tensors="pt")["pixel_values"]
        captions = [caption for caption in CAPTIONS if "&" not in caption]
        length = model.config.text.context_length
        fields = {"padding": "max_length", "max_length": length, "truncation": True}
        tokens = words(captions, return_tensors="pt", **fields).input_ids
    image, text = their_features(other, normalised, tokens)
    pixels = torch.stack([preprocess(one) for one in drawn])
    assert_same_features(model.encode_image(pixels), image)
    assert_same_features(model.encode_text(tokenizer(captions)), text)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_folder_of_theirs_gives_their_features_and_comes_back(tmp_path, name):
    import transformers

    source, out = tmp_path / "theirs", tmp_path / "out"
    save_theirs(source, name)
    (write_clip_vocabulary if name == "clip" else write_sentence_piece)(source)
    if name == "siglip":
        assert_equal_everywhere(source, source)
    export_model(source, out=out, form="hf")
    assert_equal_everywhere(source, out)
    assert_same_tensors(
        load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    )
    one, two = read_package(source), read_package(out)
    assert canonical(one.config) == canonical(two.config)
    assert one.preprocess == two.preprocess
    assert torch.equal(one.tokenizer(CAPTIONS), two.tokenizer(CAPTIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = transformers.AutoProcessor.from_pretrained(out)
        length = one.config.text.context_length
        fields = {"padding": "max_length", "max_length": length, "truncation": True}
        made = processor(text=CAPTIONS, return_tensors="pt", **fields)
    assert torch.equal(made.input_ids, one.tokenizer(CAPTIONS))
    # SigLIP was trained to see its padding.
    assert ("attention_mask" in made) == (name == "clip")


def test_a_model_trained_here_is_read_by_transformers(tmp_path):
    config = config_from_hf({"model_type": "clip", **CONFIGS["clip gelu"]})
    model = randomise(Clip(config).init_weights(0))
    tokenizer = build_tokenizer(TokenizerConfig(context_length=24))
    preprocess = PreprocessConfig(image_size=32, interpolation="bilinear")
    ours = tmp_path / "run" / "export"
    save_model(ours, model=model, tokenizer=tokenizer, preprocess=preprocess)
    export_model(tmp_path / "run", out=tmp_path / "hf", form="hf")
    assert_equal_everywhere(ours, tmp_path / "hf")


def test_a_model_goes_from_transformers_to_open_clip_and_back(tmp_path):
    save_theirs(tmp_path / "hf", "clip gelu")
    write_clip_vocabulary(tmp_path / "hf")
    export_model(tmp_path / "hf", out=tmp_path / "oc", form="open_clip")
    export_model(tmp_path / "oc", out=tmp_path / "back", form="hf")
    assert_same_tensors(
        load_file(tmp_path / "back" / "model.safetensors"),
        load_file(tmp_path / "hf" / "model.safetensors"),
    )


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_theirs(folder, "clip")
    write_clip_vocabulary(folder)
    return folder


def test_weights_in_several_files_and_in_pickles(tmp_path, clip_folder):
    tmp_path = shutil.copytree(clip_folder, tmp_path / "copy")
    want = read_package(tmp_path).tensors
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: state[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_same_tensors(read_package(tmp_path).tensors, want)
    path.unlink()
    ids = {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    torch.save(state | ids, tmp_path / "pytorch_model.bin")
    assert_same_tensors(read_package(tmp_path).tensors, want)


def test_configs_of_old_files_are_read():
    """A number for sizes, text_config_dict, sixty fields of text generation."""
    data = {
        "model_type": "clip",
        "text_config": {"num_beams": 1, "hidden_act": "quick_gelu"},
        "text_config_dict": TEXT | {"hidden_act": "gelu"},
        "vision_config": VISION,
        "vision_config_dict": None,
        "torch_dtype": "float32",
    }
    config = config_from_hf(data)
    assert config.text.transformer.activation == "gelu" and config.text.transformer.dim == 48


BAD = [
    ({"model_type": "blip"}, 'model_type = "blip" is not supported; we read clip, siglip, siglip2'),
    ({"hidden_actt": "gelu"}, r'hidden_actt = "gelu" is unknown'),
    (
        {"vision_config": VISION | {"hidden_act": "silu"}},
        'vision_config: hidden_act = "silu" is not',
    ),
    ({"vision_config": VISION | {"qkv_biass": 1}}, "vision_config: qkv_biass = 1 is unknown"),
    ({"vision_config": VISION | {"num_attention_heads": 5}}, "num_heads = 5 must divide dim = 48"),
    ({"text_config": TEXT | {"eos_token_id": [1, 2]}}, r"eos_token_id = \[1, 2\] must be int"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_we_cannot_compute_is_refused_by_its_field(changes, message):
    data = {"model_type": "clip", "vision_config": VISION, "text_config": TEXT} | changes
    with pytest.raises(UsageError, match=message) as caught:
        config_from_hf(data)
    assert "\n" not in str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "no preprocess": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        r"preprocessor_config\.json is missing",
    ),
    "no normalisation": (
        lambda f: edit(f / "preprocessor_config.json", do_normalize=False),
        "do_normalize = false is not supported",
    ),
    "another size": (
        lambda f: edit(f / "preprocessor_config.json", size={"shortest_edge": 64}),
        "size = .*64.* is not supported for image_size = 32",
    ),
    "no tokenizer": (lambda f: (f / "vocab.json").unlink(), "holds no vocab.json"),
    "another tokenizer": (lambda f: edit(f / "vocab.json", a=99), "is not CLIP's own"),
    "another width": (
        lambda f: edit(f / "config.json", vision_config=VISION | {"hidden_size": 96}),
        r"position_embedding\.weight \[17, 48\] should be \[17, 96\]",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "but no weights"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, clip_folder, kind):
    damage, message = DAMAGE[kind]
    folder = shutil.copytree(clip_folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(UsageError, match=message) as caught:
        mmtrain.load(folder)
    assert "\n" not in str(caught.value)


def test_what_transformers_cannot_say_is_refused():
    with pytest.raises(UsageError, match=r"--format hf cannot express model\.vision\.patch_bias"):
        config_to_hf(named_model("ViT-B-16-SigLIP"), kind="clip")
    with pytest.raises(UsageError, match='cannot express activation = "swiglu"'):
        config_to_hf(named_model("Modern-S-16"))


@pytest.mark.parametrize("kind", ["altclip", "chinese_clip", "clipseg", "blip"])
def test_another_clip_of_transformers_is_refused_by_its_name(kind, clip_folder, tmp_path):
    """Its tensors may even bear the names of CLIP's."""
    folder = shutil.copytree(clip_folder, tmp_path / kind)
    edit(folder / "config.json", model_type=kind)
    with pytest.raises(UsageError, match=f'model_type = "{kind}" is not supported') as caught:
        mmtrain.load(folder)
    assert "\n" not in str(caught.value)
