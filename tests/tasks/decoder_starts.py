"""Folders of decoders that a run can start from: random weights, a tokenizer, a chat template."""

import json
import tomllib
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mmtrain.settings.decode import dump_toml
from tests.interop.decoder_folders import DECODERS, build_peer
from tests.tasks.test_vqa_run import write_recipe

TEXTS = [
    "what color is the shape?", "is there a circle?", "a red square and a blue triangle",
    "You are a helpful assistant", "yes no red blue green circle two three user assistant",
]  # fmt: skip
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(folder: Path, *, chat: str | None = None, bos: bool = False) -> Tokenizer:
    """A byte-level encoding with special tokens, as a folder of transformers has it."""
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(TEXTS, trainer)
    if bos:
        rust.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    rust.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    if chat is not None:
        config |= {"chat_template": chat, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return rust


def write_decoder(
    folder: Path, name: str = "smollm2", *, chat: str | None = None, bos: bool = False
) -> Path:
    """A folder of the decoder `name` of DECODERS, with more entries than its tokenizer has ids."""
    length = "n_positions" if "n_positions" in DECODERS[name][1] else "max_position_embeddings"
    sizes = {"vocab_size": 320, length: 96, "bos_token_id": 0, "eos_token_id": 3 if chat else 1}
    build_peer(name, **sizes).save_pretrained(folder)
    write_tokenizer(folder, chat=chat, bos=bos)
    return folder


def started_recipe(folder: Path, decoder: Path, **generate: Any) -> Path:
    """A recipe that only writes, by the decoder of a folder."""
    path = write_recipe(folder)
    content = tomllib.loads(path.read_text())
    content["tokenizer"] = {"context_length": 40}
    del content["vqa"]["classify"], content["vqa"]["front_door"], content["vqa"]["min_count"]
    content["vqa"]["generate"] = {"init": str(decoder)} | generate
    path.write_text(dump_toml(content))
    return path
