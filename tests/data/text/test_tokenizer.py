"""CLIP's tokenizer against open_clip's, SentencePiece against its library, the folder on disk."""

import dataclasses
import html
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import ftfy
import pytest
import regex
import sentencepiece
import torch
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from mmtrain.data.text import cleaning as text_cleaning
from mmtrain.data.text import clip_bpe
from mmtrain.data.text.cleaning import CLEANINGS
from mmtrain.data.text.codecs import SentencePieceCodec
from mmtrain.data.text.sentence_piece import SentencePieceModel
from mmtrain.data.text.tokenizer import (
    CONFIG_FILE,
    Tokenizer,
    TokenizerConfig,
    build_tokenizer,
    load_tokenizer,
)
from mmtrain.errors import UsageError


def words(text: str) -> list[str]:
    return text.split()


WORDS = words(
    """
    a photo of the dog's cat isn't we're they've I'm you'll he'd sunset Beach RED 2024
    3.14 50% naïve café Straße ﬁne ΣΊΣΥΦΟΣ İstanbul ĲSSEL Ünïcödé 東京タワー 你好，世界 안녕하세요
    สวัสดี नमस्ते שלום مرحبا русский “quoted” ‘single’ it’s … — ½ ² ① Ⅷ ㎏ http://x.org/?a=1&b=2
    #tag @you photo-realistic snake_case CamelCase C++ e.g. !!! ??!? $9.99 x'sx 'ſ 'S 'RE
    ''' \\n ~ ` | ﬆ ß
    """
)
EMOJI = words(
    """
    🐶 👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽 ❤️
    🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 1️⃣ 🧑\u200d🚀 😂😂😂 ☕️ ♀ 🫠
    """
)
ENTITIES = words(
    """
    &amp; &lt;b&gt; &#39; &#x1F600; &nbsp; &amp;amp; &amp;lt;br&amp;gt; &copy
    &notanentity; &#xD800; &#0; &#1114112; &quot;hi&quot; &Eacute; &hellip; &#13;
    &amp;#39; &lt;start_of_text&gt; AT&T &
    """
)
SPECIAL = words(
    """
    <start_of_text> <end_of_text> <|endoftext|> <|startoftext|> <START_OF_TEXT>
    <End_Of_Text> <ſtart_of_text> </w> <end_of_text <<end_of_text>> !<end_of_text>
    a<end_of_text>b <start_of_text><end_of_text> 'S<end_of_text> 7<start_of_text>7
    <start_of_text>. <end-of-text> ＜end_of_text＞ <end_of_text>_of_text> <ﬆart_of_text>
    """
)
CONTROLS = [
    *map(chr, range(32)),
    "\x7f",
    *map(chr, range(0x80, 0xA1)),
    "\ufeff",
    "\u200b",
    "\u200d",
]
CONTROLS += ["\u2028", "\u2029", "\u202e", "\u3000", "\x1b[31m", "\ufffd", "\uffff", "\u00ad"]
CONTROLS += ["\ud800", "\udfff", "\ud83d\ude00", "\ude00\ud83d", "\U0010ffff", "\u0301", "\u20e3"]
NEW_CHARACTERS = [
    chr(code)
    for ranges in (clip_bpe._NEW_LETTERS, clip_bpe._NEW_NUMBERS)
    for span in ranges.split()
    for code in range(int(span.split("-")[0], 16), int(span.split("-")[-1], 16) + 1)
]


def mangled(text: str, rng: random.Random) -> str:
    """`text` as if its bytes had been read in another encoding, up to twice."""
    for _ in range(rng.randint(1, 2)):
        codec = rng.choice(["latin-1", "cp1252", "mac_roman"])
        text = text.encode("utf-8", "replace").decode(codec, "replace")
    return text


def diverse_texts(num: int) -> list[str]:
    """`num` texts, the same at every call: ten kinds in turn, then a few of 100 KB."""
    rng = random.Random(0)
    known = [
        chr(code)
        for code in range(0x110000)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    mixed = [*WORDS, *EMOJI, *ENTITIES, *SPECIAL]

    def joined(vocabulary, glue=(" ",), most=24):
        words = rng.choices(vocabulary, k=rng.randint(0, most))
        return "".join(word + rng.choice(glue) for word in words)

    kinds = (
        lambda: joined(WORDS),
        lambda: joined(EMOJI + WORDS[:8], (" ", "")),
        lambda: joined(ENTITIES + WORDS, (" ", "", ";")),
        lambda: mangled(joined(WORDS + EMOJI), rng),
        lambda: joined(CONTROLS + WORDS, ("", "", " ")),
        lambda: joined(SPECIAL + WORDS[:12], (" ", "")),
        lambda: "".join(rng.choices(known, k=rng.randint(0, 40))),
        lambda: "".join(rng.choices("".join(map(chr, range(128))), k=rng.randint(0, 60))),
        lambda: "".join(rng.choices(NEW_CHARACTERS + list("a1! 字"), k=rng.randint(0, 12))),
        lambda: joined(mixed, ("", " ", "\n", "\t", "\u00a0", "&"), most=90),
    )
    texts = ["", " ", "\n\t ", "\x00", "<end_of_text>", "ſ", "'"]
    texts += [
        (seed * (100_000 // len(seed.encode("utf-8", "replace")) + 1))[:100_000]
        for seed in ("word ", "a", "!?", "🐶", "&amp;", "<end_of_text>", "東", "Ã©", "x1 ")
    ]
    return texts + [kinds[i % len(kinds)]() for i in range(num - len(texts))]


@pytest.mark.parametrize(
    ("clean", "num"),
    [
        ("lower", 1000),
        ("whitespace", 400),
        ("canonicalize", 400),
        pytest.param("lower", 10_000, marks=pytest.mark.slow),
    ],
)
def test_ids_equal_open_clips(clean, num):
    texts = diverse_texts(num)
    theirs = SimpleTokenizer(clean=clean)
    ours = build_tokenizer(TokenizerConfig(clean=clean, context_length=300_000))
    for text in texts:
        tokens_1T, length_1 = ours.encode([text])
        expected = [49406, *theirs.encode(text), 49407]
        assert tokens_1T[0].tolist() == expected, repr(text[:200])
        assert length_1.item() == len(expected)


@pytest.mark.parametrize("context_length", [77, 16])
def test_padded_and_truncated_ids_equal_open_clips(context_length):
    texts = diverse_texts(500)
    theirs = SimpleTokenizer(context_length=context_length)
    ours = build_tokenizer(TokenizerConfig(context_length=context_length))
    assert (ours.vocab_size, ours.sot_id, ours.eot_id, ours.pad_id) == (49408, 49406, 49407, 0)
    assert torch.equal(ours(texts), theirs(texts))
    assert torch.equal(ours("a dog"), theirs("a dog"))
    tokens_BT, length_B = ours.encode(texts)
    assert tokens_BT.shape == (500, context_length)
    assert torch.equal(tokens_BT, theirs(texts))
    assert torch.equal(tokens_BT.gather(1, length_B[:, None] - 1), torch.full((500, 1), 49407))
    assert not tokens_BT[torch.arange(context_length) >= length_B[:, None]].any()


@pytest.mark.parametrize(
    ("name", "new"), [("L", clip_bpe._NEW_LETTERS), ("N", clip_bpe._NEW_NUMBERS)]
)
def test_every_character_is_of_open_clips_class(name, new):
    if not regex.match(r"\p{L}", "\U0003d000"):
        pytest.skip("the installed regex does not know Unicode 18 yet")
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    pattern = rf"[\p{{{name}}}{clip_bpe._character_class(new)}]+"
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    ours = [piece for piece, _ in split.pre_tokenize_str(text)]
    assert ours == regex.findall(rf"\p{{{name}}}+", text)


def test_encode_is_cut_to_the_longest_text():
    tokenizer = build_tokenizer(TokenizerConfig())
    tokens_BT, length_B = tokenizer.encode(["a dog", "", "two big dogs run"])
    assert tokens_BT.dtype == length_B.dtype == torch.int64
    assert length_B.tolist() == [4, 2, 6]
    assert torch.equal(tokens_BT, tokenizer(["a dog", "", "two big dogs run"])[:, :6])
    assert tokenizer.encode([])[0].shape == (0, 0)
    assert tokenizer([]).shape == (0, 77)


def test_padding_with_another_id():
    tokenizer = build_tokenizer(TokenizerConfig(context_length=5, pad_id=49407))
    assert tokenizer("dog")[0].tolist() == [49406, 1929, 49407, 49407, 49407]


def test_the_cache_of_words_changes_nothing(monkeypatch):
    texts = diverse_texts(300)
    expected = build_tokenizer(TokenizerConfig())(texts)
    tokenizer = build_tokenizer(TokenizerConfig())
    tokenizer(texts)
    assert torch.equal(tokenizer(texts), expected)
    monkeypatch.setattr(clip_bpe, "_MAX_CACHED_WORDS", 10)
    assert torch.equal(build_tokenizer(TokenizerConfig())(texts), expected)


def test_plain_text_is_what_ftfy_leaves_alone():
    rng = random.Random(1)
    plain = "".join(chr(code) for code in (9, 10, *range(32, 127)) if chr(code) != "&")
    for _ in range(300):
        text = "".join(rng.choices(plain, k=rng.randint(0, 200)))
        assert text_cleaning._PLAIN.fullmatch(text)
        assert html.unescape(html.unescape(ftfy.fix_text(text))) == text


def test_fork_after_use_is_silent():
    """The `tokenizers` library warns, and may hang, where threads were in use before a fork."""
    code = (
        "import os\n"
        "from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer\n"
        "tokenizer = build_tokenizer(TokenizerConfig())\n"
        "tokenizer(['a dog'] * 64)\n"
        "child = os.fork()\n"
        "print(tokenizer(['another dog'] * 64).sum().item())\n"
        "if child: os.waitpid(child, 0)\n"
    )
    environment = {key: os.environ[key] for key in os.environ if key != "TOKENIZERS_PARALLELISM"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(set(result.stdout.split())) == 1


@pytest.fixture(scope="module")
def model_files(tmp_path_factory) -> Path:
    """`unigram.model`, `bpe.model` (byte fallback) and `bare.model` (no special ids)."""
    folder = tmp_path_factory.mktemp("models")
    rng = random.Random(2)
    corpus = [" ".join(rng.choices(WORDS[:60], k=12)).lower() for _ in range(400)]
    special = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    for name, options in {
        "unigram": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 400, **special},
        "bpe": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 500, **special},
        "bare": {"model_type": "bpe", "vocab_size": 250, "eos_id": -1, "bos_id": -1},
    }.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_writer=model, minloglevel=2, **options
        )
        (folder / f"{name}.model").write_bytes(model.getvalue())
    return folder


@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_sentencepiece_ids_equal_the_librarys(model_files, name):
    library = sentencepiece.SentencePieceProcessor(model_file=str(model_files / f"{name}.model"))
    config = TokenizerConfig(kind="sentencepiece", path=f"{name}.model", context_length=4000)
    tokenizer = build_tokenizer(config, folder=model_files)
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (library.vocab_size(), 2)
    texts = [text for text in diverse_texts(400) if len(text) < 500]
    tokens_BT, length_B = tokenizer.encode(texts)
    for text, tokens_T, length in zip(texts, tokens_BT, length_B, strict=True):
        ids = library.encode(CLEANINGS["lower"](text))
        assert tokens_T[:length].tolist() == [*ids, 2]
        assert not tokens_T[length:].any()
        assert library.unk_id() not in ids  # bytes stand in for what was never seen


def test_siglip_style(model_files):
    """End token kept when cut, no start token, canonical text, padded with an id of one's own."""
    config = TokenizerConfig(
        kind="sentencepiece", path="bpe.model", context_length=8, clean="canonicalize", pad_id=1
    )
    tokenizer = build_tokenizer(config, folder=model_files)
    tokens_BT = tokenizer(["Dog!", "a photo of the dog's cat, isn't it? a photo of a dog"])
    ids = tokenizer._model.token_ids(["dog"], limit=8)[0]
    assert tokens_BT[0].tolist() == [*ids, 2] + [1] * (7 - len(ids))
    assert tokens_BT[1, -1] == 2
    assert 1 not in tokens_BT[1]
    both = build_tokenizer(dataclasses.replace(config, add_sot=True), folder=model_files)
    assert both("dog")[0, : len(ids) + 2].tolist() == [1, *ids, 2]


def tokenizers(model_files: Path) -> list[Tokenizer]:
    return [
        build_tokenizer(TokenizerConfig(context_length=20, clean="whitespace")),
        build_tokenizer(
            TokenizerConfig(kind="sentencepiece", path="unigram.model", add_sot=True, pad_id=3),
            folder=model_files,
        ),
    ]


def test_save_and_load(model_files, tmp_path):
    texts = diverse_texts(200)
    for i, tokenizer in enumerate(tokenizers(model_files)):
        folder = tmp_path / str(i) / "export"
        tokenizer.save(folder)
        loaded = load_tokenizer(folder)
        assert torch.equal(loaded(texts), tokenizer(texts))
        assert loaded.pad_id == tokenizer.pad_id
        loaded.save(tmp_path / str(i) / "again")
        for file in folder.iterdir():
            assert file.read_bytes() == (tmp_path / str(i) / "again" / file.name).read_bytes()
        assert torch.equal(pickle.loads(pickle.dumps(loaded))(texts), tokenizer(texts))


def test_pickled_tokenizer_is_the_same_and_small(model_files):
    texts = diverse_texts(200)
    for tokenizer in tokenizers(model_files):
        tokenizer(texts)
        pickled = pickle.dumps(tokenizer)
        assert len(pickled) < 300_000  # neither CLIP's table nor the cache of words travels
        assert torch.equal(pickle.loads(pickled)(texts), tokenizer(texts))


def edit_config(folder: Path, **changes) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    for key, value in changes.items():
        content[key] = value
        if value is ...:
            del content[key]
    (folder / CONFIG_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit_config(folder, context_lenght=5), "did you mean context_length"),
        (lambda folder: edit_config(folder, bos_token="x"), "bos_token = 'x' is not a key"),
        (lambda folder: edit_config(folder, clean=...), "clean missing"),
        (lambda folder: edit_config(folder, clean="upper"), "clean = 'upper' is unknown; use"),
        (lambda folder: edit_config(folder, pad_id=True), "pad_id = True has the wrong type"),
        (lambda folder: edit_config(folder, pad_id=60000), "pad_id = 60000: outside"),
        (lambda folder: edit_config(folder, sha256="0"), "SHA-256"),
        (lambda folder: (folder / CONFIG_FILE).write_text("{"), "is not JSON"),
        (lambda folder: (folder / CONFIG_FILE).write_text("[]"), "is not a JSON object"),
        (lambda folder: (folder / CONFIG_FILE).unlink(), "No such file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "No such file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "SHA-256"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, damage, message):
    build_tokenizer(TokenizerConfig()).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "bert"}, "tokenizer.kind = 'bert' is unknown; use clip or sentencepiece"),
        ({"context_length": 2}, "tokenizer.context_length = 2 leaves no room"),
        ({"add_sot": False}, "tokenizer.add_sot = false: CLIP's texts have both"),
        ({"add_eot": False}, "tokenizer.add_eot = false: CLIP's texts have both"),
        ({"kind": "sentencepiece"}, "tokenizer.path is missing"),
        ({"kind": "sentencepiece", "path": "none.model"}, "none.model: No such file"),
        ({"kind": "sentencepiece", "path": "page.html"}, "is not a SentencePiece model"),
        ({"kind": "sentencepiece", "path": "empty.model"}, "is not a SentencePiece model"),
        ({"kind": "clip", "path": "page.html"}, "is not a tokenizer.json"),
        ({"kind": "clip", "path": "other.json"}, "has no <start_of_text>"),
        ({"kind": "sentencepiece", "path": "bare.model", "pad_id": 0}, "add_eot = true: the model"),
        ({"kind": "sentencepiece", "path": "bare.model", "add_eot": False}, "no padding token"),
    ],
)
def test_a_mistaken_config_is_refused_in_one_line(model_files, fields, message):
    (model_files / "page.html").write_text("<html>not found</html>")
    (model_files / "empty.model").write_bytes(b"")
    (model_files / "other.json").write_text(RustTokenizer(models.BPE()).to_str())
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        build_tokenizer(TokenizerConfig(**fields), folder=model_files)
    assert "\n" not in str(caught.value)


def read_codec(definition: bytes) -> SentencePieceCodec:
    """As Llama-2 carries it."""
    return SentencePieceCodec(definition, add_bos=True, add_eos=False)


@pytest.mark.parametrize("content", [b"", b"\0", b"<html>", bytes(range(256)) * 9, b"\n\xff\xff"])
@pytest.mark.parametrize("build", [SentencePieceModel, read_codec], ids=["model", "codec"])
def test_what_is_no_sentence_piece_model_is_told_in_our_words(capfd, build, content):
    """Nobody is helped by `INTERNAL: could not parse ModelProto`, in the line or beside it."""
    with pytest.raises(ValueError, match="is not a SentencePiece model") as caught:
        build(content)
    told = f"{caught.value} {capfd.readouterr()}".lower()
    assert "internal" not in told and ".cc" not in told and "proto" not in told
