"""Decoders' tokenizers and chat templates against transformers' on the same folders."""

import json
import shutil

import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mmtrain.data.text.chat import ChatTemplate
from mmtrain.data.text.codecs import JsonCodec
from mmtrain.data.text.json_tokenizer import JsonTokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.hf_decoder_files import read_hf_decoder, read_tokenizer, write_hf_decoder
from tests.interop.decoder_folders import edit_config, write_peer
from tests.interop.tokenizer_folders import fuzzed, token, write_json

TEXTS = ["a red circle", "two  spaces\nand a line", "naïve café 火", "</s> inside", "", "x"]
CORPUS = ["a red circle and a blue square", "how many shapes are there ? two", "yes no 1 2 3 café"]
CHATS = [
    [{"role": "user", "content": "How many?"}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": 'A "quoted" <word> & more?'},
        {"role": "assistant", "content": "Two.\n"},
        {"role": "user", "content": "And now?"},
    ],
]
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\n"
        "    {%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama-2, with a system turn folded in": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = "
        "messages[0]['content'] %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}"
        "{% endif %}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
        "[INST] {% if system is defined and loop.first %}<<SYS>>{{ system }}<</SYS>>{% endif %}"
        "{{ m['content'] | trim }} [/INST]{% else %}{% generation %} {{ m['content'] }}"
        "{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "json and loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m | tojson }}\n{% endfor %}"
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A byte-level tokenizer.json with a start token, and a SentencePiece model with bytes."""
    root = tmp_path_factory.mktemp("tokenizers")
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        CORPUS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    )
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    (root / "json").mkdir()
    rust.save(str(root / "json" / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}}
    config = names | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (root / "json" / "tokenizer_config.json").write_text(json.dumps(config))
    (root / "pieces").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(root / "pieces" / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        # As Llama's: what is written stays as it is.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    config = names | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (root / "pieces" / "tokenizer_config.json").write_text(json.dumps(config))
    return root


def peer_of(folder):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def test_a_tokenizer_json_gives_transformers_ids_and_texts(folders):
    ours, theirs = read_tokenizer(folders / "json"), peer_of(folders / "json")
    for text in TEXTS:
        assert ours.encode(text) == theirs(text).input_ids
        plain = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, special=False) == plain
        assert ours.decode(ours.encode(text)) == theirs.decode(plain, skip_special_tokens=True)
    assert ours.end_ids == (1,)


def test_a_sentencepiece_model_gives_its_own_ids_and_control_pieces_by_name(folders):
    ours = read_tokenizer(folders / "pieces")
    processor = sentencepiece.SentencePieceProcessor(str(folders / "pieces" / "tokenizer.model"))
    for text in ("a red circle", "two  spaces and", "naïve café 火", ""):
        assert ours.encode(text) == [processor.bos_id(), *processor.encode(text)]
        assert ours.decode(ours.encode(text)) == text
    inside = ours.encode("yes</s>no", special=False)
    assert inside == [*processor.encode("yes"), processor.eos_id(), *processor.encode("no")]
    assert ours.end_ids == (processor.eos_id(),)


@pytest.mark.parametrize("form", ["json", "pieces"])
def test_a_lone_surrogate_is_the_replacement_character(form, folders):
    ours = read_tokenizer(folders / form)
    for odd in ("\ud83d", "\udce9"):
        assert ours.encode(f"a {odd}b") == ours.encode("a \ufffdb")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("asks", [False, True])
def test_chats_are_rendered_as_transformers_renders_them(name, chat, asks, folders):
    ours = read_tokenizer(folders / "json")
    template = ChatTemplate(TEMPLATES[name], special_tokens=ours.special_tokens)
    want = peer_of(folders / "json").apply_chat_template(
        chat, chat_template=TEMPLATES[name], add_generation_prompt=asks, tokenize=False
    )
    assert template.render(chat, add_generation_prompt=asks) == want


def test_a_template_is_a_program_in_a_sandbox(monkeypatch):
    monkeypatch.setattr("mmtrain.data.text.chat_sandbox._MOST_STEPS", 20_000)
    chat = [{"role": "assistant", "content": "hi"}]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    refuses = ChatTemplate(TEMPLATES["llama-2, with a system turn folded in"], special_tokens=names)
    with pytest.raises(UsageError, match="chat template: roles must alternate"):
        refuses.render(chat)
    for source in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(90) }}",
        "{{ 'x' * 10**12 }}",
        "{{ [0] * 99999999999 }}",
        "{{ 9**9**9 }}",
    ):
        with pytest.raises(UsageError, match="chat template: "):
            ChatTemplate(source, special_tokens={}).render(chat)
    with pytest.raises(UsageError, match="chat template: "):
        ChatTemplate("{% for %}", special_tokens={})


def test_a_file_whose_expression_does_not_end_is_one_line():
    """The library itself gives up, by what is no Exception."""
    split = pre_tokenizers.Split(Regex("(a+)+b"), behavior="isolated")
    rust = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    rust.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    definition = rust.to_str().encode()
    for read in (
        lambda text: JsonCodec(definition).encode(text, special=True),
        lambda text: JsonCodec(definition).pieces(text, mark="<|>"),
        lambda text: JsonTokenizer(definition).token_ids([text], limit=99),
    ):
        assert read("a")
        with pytest.raises(
            UsageError, match=r"^tokenizer.json cannot be used on 'aaa.*retry"
        ) as no:
            read("a" * 50)
        assert "\n" not in str(no.value)


def test_a_decoders_folder_keeps_its_tokenizer_and_says_when_to_end(folders, tmp_path):
    write_peer("smollm2", tmp_path / "model")
    size = read_tokenizer(folders / "json").vocab_size
    for path in (folders / "json").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    with pytest.raises(UsageError, match=f"the tokenizer has {size} ids, but the model's vocab_s"):
        read_hf_decoder(tmp_path / "model")
    import transformers

    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    peer.resize_token_embeddings(size)
    peer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    package = read_hf_decoder(tmp_path / "model")
    assert package.tokenizer.end_ids == (1, 3)
    write_hf_decoder(package, tmp_path / "again")
    again = read_hf_decoder(tmp_path / "again")
    kept = {name: x for name, x in package.files.items() if name != "config.json"}
    assert kept == {name: x for name, x in again.files.items() if name != "config.json"}
    assert again.tokenizer.end_ids == (1, 3)
    want = peer_of(tmp_path / "again").apply_chat_template(
        CHATS[0], add_generation_prompt=True, return_dict=False
    )
    assert again.tokenizer.encode_chat(CHATS[0]) == want


def test_gpt2s_two_files_make_its_tokenizer(folders, tmp_path):
    model = json.loads((folders / "json" / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    one, other = read_tokenizer(tmp_path), read_tokenizer(folders / "json")
    assert one.encode(TEXTS[2]) == other.encode(TEXTS[2], special=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_damaged_files_are_one_line(name, tmp_path):
    write_peer("smollm2", tmp_path)
    edit_config(tmp_path)
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UsageError, match=f"{name} is not a "):
        read_hf_decoder(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("form", ["two files", "tokenizer.json", "added_tokens.json"])
def test_added_tokens_and_the_models_own_cut(tmp_path, kind, form):
    """Files of every age: the ids of transformers on fuzzed texts."""
    from transformers import AutoTokenizer

    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
    )
    rust.train_from_iterator(CORPUS * 5, trainer)
    size = rust.get_vocab_size()
    rust.model.save(str(tmp_path))
    write_json(tmp_path / "config.json", {"model_type": kind})
    added = {
        "0": token("<|endoftext|>", special=True),
        str(size): token("<|im_start|>", special=True),
        str(size + 1): token("<tool>", lstrip=True),
        str(size + 2): token("Red", normalized=True),
    }
    config = {"tokenizer_class": {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}[kind]}
    if form == "added_tokens.json":
        contents = {one["content"]: int(number) for number, one in added.items()}
        write_json(tmp_path / "added_tokens.json", contents)
    else:
        config["added_tokens_decoder"] = added
    write_json(tmp_path / "tokenizer_config.json", config)
    if form == "tokenizer.json":
        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).unlink(missing_ok=True)
    ours, theirs = read_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs) == size + 3
    for text in fuzzed(150, ["<|endoftext|>", "<|im_start|>", "<tool>", "Red"]):
        assert ours.encode(text) == theirs(text).input_ids, text[:80]


def test_tokens_beyond_a_sentence_piece_model(tmp_path):
    """added_tokens.json of a model that was tuned further: one id, not its letters."""
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(CORPUS * 9), model_writer=file, vocab_size=60,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    plain = read_tokenizer(tmp_path)
    size = plain.vocab_size
    write_json(tmp_path / "added_tokens.json", {"<pad>": size, "<|im_end|>": size + 1})
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": "<pad>"})
    ours = read_tokenizer(tmp_path)
    assert ours.vocab_size == size + 2
    ids = ours.encode("a red<pad> circle<|im_end|>", special=False)
    assert [i for i in ids if i >= size] == [size, size + 1] and len(ids) > 4
    assert ours.decode(ids).endswith("circle<|im_end|>") and "<pad>" not in ours.decode(ids)
    assert ours.encode("a red circle") == plain.encode("a red circle")


def test_an_added_token_with_two_ids_is_refused(tmp_path):
    rust = Tokenizer(models.BPE())
    rust.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=80))
    rust.save(str(tmp_path / "tokenizer.json"))
    added = {"400": token("<cat>", special=True)}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": added})
    with pytest.raises(UsageError, match="the added token <cat> is 400 in one file and"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% if %}", "tokenizer_config.json: chat template: "),
        ([{"name": "default", "template": "{{"}], "tokenizer_config.json: chat template: "),
        (
            [{"name": "tool_use", "template": "a"}, {"name": "rag", "template": "b"}],
            r"its chat templates \(tool_use, rag\) none is named default",
        ),
        ([{"name": "chat", "template": "a"}], r"\(chat\) none is named default"),
        (["a"], "must be a text, or a list of named ones"),
        ([{"name": "default"}], "must be a text, or a list of named ones"),
        (3, "must be a text, or a list of named ones"),
    ],
)
def test_a_chat_template_that_cannot_be_taken_is_told_with_its_file(
    folders, tmp_path, template, told
):
    """Named ones without a default are those that transformers refuses to choose among."""
    folder = shutil.copytree(folders / "json", tmp_path / "one")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    with pytest.raises(UsageError, match=told) as caught:
        read_tokenizer(folder)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    if "none is named" in told:
        with pytest.raises(ValueError, match="no default"):
            peer_of(folder).apply_chat_template([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("text", [b"{{", b"{% for %}", b"caf\xe9"])
def test_a_damaged_template_file_is_named(folders, tmp_path, text):
    """It stands before what the config says."""
    folder = shutil.copytree(folders / "json", tmp_path / "one")
    (folder / "chat_template.jinja").write_bytes(text)
    with pytest.raises(UsageError, match=r"chat_template\.jinja: chat template: ") as caught:
        read_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_the_default_of_named_templates_is_taken(folders, tmp_path):
    folder = shutil.copytree(folders / "json", tmp_path / "one")
    path, none = folder / "tokenizer_config.json", [[], None]
    named = [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]
    for template, has_chat in ((named, True), *((one, False) for one in none)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
        assert read_tokenizer(folder).has_chat == has_chat
