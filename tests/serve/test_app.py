"""Every address of the page, what it answers, and what hostile requests get."""

import asyncio
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from mmtrain.data.images.transforms import EvalTransform, PreprocessConfig
from mmtrain.eval.look.attention_maps import read_images, text_maps
from mmtrain.serve.answers import Answers
from mmtrain.serve.app import PAGE, build_app
from mmtrain.serve.fields import MAX_JSON_BYTES
from mmtrain.serve.index import embed_now
from mmtrain.serve.site import MAX_IMAGE_BYTES, build_page
from tests.data.shard_files import encoded, picture
from tests.serve.tiny import COUNT, SIDE, TOKENIZER, tiny_clip, tiny_encoder, write_pictures

LABELS = ["dog", "cat", "a red car"]


class Server:
    """The app, its parts, and a client that talks to it."""

    def __init__(self, shard: Path, *, bias: float | None = None, searches: bool = True) -> None:
        self.model = tiny_clip(bias=bias)
        encoder = tiny_encoder(self.model)
        self.index = embed_now(encoder, [str(shard)]) if searches else None
        self.answers = Answers(self.model, encoder, name="a run", index=self.index)
        self.app = build_app(self.answers)
        self.client = TestClient(self.app, "http://127.0.0.1:8000", raise_server_exceptions=False)

    def ask(self, path: str, body: Any = None, **options: Any) -> Any:
        """What a good question is answered with."""
        content = body if isinstance(body, bytes) else json.dumps(body)
        reply = self.client.post(path, content=content, **options)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def refused(self, path: str, body: Any = None, *, status: int = 400) -> str:
        """The one line that a bad question is answered with."""
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        reply = self.client.post(path, content=content)
        assert reply.status_code == status, reply.text
        return one_line(reply.json())


def one_line(answer: dict[str, Any]) -> str:
    assert list(answer) == ["error"] and answer["error"] and "\n" not in answer["error"]
    assert "/" not in answer["error"], "a path"
    return answer["error"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(write_pictures(tmp_path_factory.mktemp("serve") / "pictures.tar"))


@pytest.fixture
def image(server: Server) -> str:
    return server.ask("/api/images", encoded(picture((24, 20), seed=3), "PNG"))["image"]


def text_feature(server: Server, text: str) -> torch.Tensor:
    with torch.no_grad():
        return server.model.encode_text(TOKENIZER([text]))[0]


def image_feature(server: Server, pixels: Image.Image) -> torch.Tensor:
    square = EvalTransform(PreprocessConfig(image_size=SIDE))(pixels)
    with torch.no_grad():
        return server.model.encode_image(square[None])[0]


def test_the_page_runs_nothing_but_its_own(server: Server):
    reply = server.client.get("/")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    html, _ = build_page(PAGE)
    assert reply.text == html and "page.js */" not in html and "page.css */" not in html
    # Nothing is fetched from elsewhere, and the policy would not let an attribute act.
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html and "style=" not in html and "onclick" not in html
    for name in ("cross-origin-resource-policy", "x-content-type-options", "referrer-policy"):
        assert name in reply.headers


def test_about(server: Server):
    about = server.client.get("/api/about").json()
    assert about["name"] == "a run" and about["num_images"] == COUNT
    assert about["image_size"] == SIDE
    assert about["num_parameters"] == sum(x.numel() for x in server.model.parameters())


def test_search_finds_the_nearest(server: Server):
    found = server.ask("/api/search", {"text": "  a red\n car ", "count": 3})["found"]
    assert server.index is not None
    nearest = server.index.nearest(text_feature(server, "a red car"), 3)
    assert [one["number"] for one in found] == [number for number, _ in nearest]
    assert [one["cosine"] for one in found] == pytest.approx([x for _, x in nearest], abs=1e-6)
    assert found[0]["caption"] == f"picture {found[0]['number']}"
    assert len(server.ask("/api/search", {"text": "x"})["found"]) == COUNT


def test_pictures_and_what_is_similar(server: Server):
    reply = server.client.get("/api/pictures/4")
    assert reply.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(reply.content)).size == (24, 18)
    added = server.ask("/api/pictures/4", b"")
    assert (added["width"], added["height"]) == (24, 18)
    found = server.ask("/api/search", {"image": added["image"], "count": 1})["found"]
    assert found[0]["number"] == 4 and found[0]["cosine"] == pytest.approx(1, abs=1e-5)


def test_probabilities_are_the_models(server: Server, image: str):
    answer = server.ask(
        "/api/classify", {"image": image, "labels": [*LABELS, "dog"], "prompt": "a photo of {}"}
    )
    assert answer["independent"] is False
    feature = image_feature(server, picture((24, 20), seed=3))
    texts = torch.stack([text_feature(server, f"a photo of {label}") for label in LABELS])
    expected = (server.model.logit_scale.exp() * texts @ feature).softmax(0).tolist()
    got = {one["label"]: one["probability"] for one in answer["labels"]}
    assert got == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)
    assert sum(got.values()) == pytest.approx(1)
    shares = [one["probability"] for one in answer["labels"]]
    assert shares == sorted(shares, reverse=True)


def test_with_a_bias_each_label_has_its_own(tmp_path: Path):
    server = Server(write_pictures(tmp_path / "a.tar"), bias=-2.0, searches=False)
    image = server.ask("/api/images", encoded(picture((24, 20), seed=3), "PNG"))["image"]
    answer = server.ask("/api/classify", {"image": image, "labels": LABELS})
    assert answer["independent"] is True
    feature = image_feature(server, picture((24, 20), seed=3))
    for one in answer["labels"]:
        cosine = text_feature(server, one["label"]) @ feature
        logit = server.model.logit_scale.detach().exp() * cosine - 2
        assert one["probability"] == pytest.approx(float(logit.sigmoid()), abs=1e-5)
    assert "start with --index" in server.refused("/api/search", {"text": "x"}, status=404)
    assert server.client.get("/api/pictures/0").status_code == 404


def test_the_heat_map_is_the_evaluations(server: Server, image: str):
    rows = server.ask("/api/heat-map", {"image": image, "label": "dog", "prompt": "a {}"})["rows"]
    square = EvalTransform(PreprocessConfig(image_size=SIDE))(picture((24, 20), seed=3))
    read = read_images(server.model, square[None])
    expected = text_maps(server.model, read, text_feature(server, "a dog")[None])[0]
    torch.testing.assert_close(torch.tensor(rows), expected, atol=1e-6, rtol=1e-3)


def test_a_photo_is_turned_upright_and_shown_as_the_model_sees_it(server: Server):
    photo = picture((30, 20), seed=5)
    exif = Image.Exif()
    exif[0x0112] = 6  # held by its side
    added = server.ask("/api/images", encoded(photo, "PNG", exif=exif))
    assert (added["width"], added["height"]) == (20, 30)
    left, top, width, height = added["region"]
    assert (left, width) == (0, 1) and 0 < top < 0.5 and top + height < 1
    shown = server.client.get(f"/api/images/{added['image']}")
    assert Image.open(io.BytesIO(shown.content)).size == (20, 30)
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    got = server.answers._images[added["image"]].read.feature_BE[0]
    torch.testing.assert_close(got, image_feature(server, upright))


@pytest.mark.parametrize(
    ("labels", "prompt", "told"),
    [
        (["cat", "dog", "Cat"], "{}", "the labels 'cat' and 'Cat' are the same to the model"),
        (["word " * 30 + "cat", "word " * 30 + "dog"], "{}", "which reads 16 tokens of a text"),
        (["cat", "dog"], "a photo of " * 9 + "{}", "the labels 'cat' and 'dog' are the same"),
        (["cat", "\x00"], "a photo of {}", r"'\x00' has no words that the model reads"),
    ],
)
def test_labels_that_the_model_cannot_tell_apart_are_refused(server, image, labels, prompt, told):
    """They would share the probability that one of them has."""
    body = {"image": image, "labels": labels, "prompt": prompt}
    assert told in server.refused("/api/classify", body)


def test_a_text_without_words_finds_nothing(server: Server, image: str):
    for path, body in (
        ("search", {"text": "\x00"}),
        ("heat-map", {"image": image, "label": "\x00"}),
    ):
        assert "has no words that the model reads" in server.refused(f"/api/{path}", body)


def test_images_are_forgotten_one_by_one(tmp_path: Path, server: Server):
    first = server.ask("/api/images", encoded(picture(), "PNG"))["image"]
    for seed in range(16):
        server.ask("/api/images", encoded(picture(seed=seed), "PNG"))
    told = server.refused("/api/classify", {"image": first, "labels": LABELS}, status=404)
    assert "drop it again" in told


# What is refused ----------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be that large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the image is empty"),
        (b"<html>not an image</html>", "no image that Pillow reads"),
        (b"GIF89a" + bytes(64), "no image that Pillow reads"),
        (png_header(60_000, 60_000), "image too large (at most 67 million pixels)"),
        (png_header(12_000, 12_000), "image too large (at most 67 million pixels)"),
        (png_header(64, 64), "image truncated"),
        (encoded(picture((64, 64)), "PNG")[:300], "image"),
        (encoded(picture((64, 64)), "JPEG")[:300], "image"),
        (encoded(Image.new("RGB", (60_000, 1)), "JPEG"), "image"),
        (encoded(Image.new("1", (40_000_000, 1)), "PNG"), "image too elongated"),
    ],
    ids=[
        "empty",
        "html",
        "gif",
        "bomb",
        "smaller-bomb",
        "header",
        "cut-png",
        "cut-jpeg",
        "long-jpeg",
        "long",
    ],
)
def test_bad_images(server: Server, data: bytes, told: str):
    if told == "image" and data[:2] == b"\xff\xd8" and len(data) > 300:
        # Long, but a square of it can still be made.
        server.ask("/api/images", data)
        return
    assert told in server.refused("/api/images", data)


def drive(app: Any, path: str, *, headers: dict[str, str], most: int) -> tuple[int, dict, int]:
    """Status, answer and number of MiB read, of an upload that never ends.

    Fails where more than `most` MiB are read.
    """
    sent: list[dict[str, Any]] = []
    pieces = 0

    async def receive() -> dict[str, Any]:
        nonlocal pieces
        pieces += 1
        assert pieces <= most, "the upload is read on"
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"127.0.0.1:8000")]
        + [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body), pieces


@pytest.mark.parametrize(
    ("path", "limit"), [("/api/images", MAX_IMAGE_BYTES), ("/api/classify", MAX_JSON_BYTES)]
)
def test_large_bodies_are_not_read(server: Server, path: str, limit: int):
    told = {"content-length": str(2 << 30)}
    status, answer, pieces = drive(server.app, path, headers=told, most=0)
    assert (status, pieces) == (413, 0)
    assert f"is larger than {limit >> 20} MB" in one_line(answer)
    # In chunks, or with a length that lies, it is read up to the limit.
    for headers in ({"transfer-encoding": "chunked"}, {"content-length": "10"}):
        status, answer, pieces = drive(server.app, path, headers=headers, most=(limit >> 20) + 1)
        assert status == 413 and f"is larger than {limit >> 20} MB" in one_line(answer)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "",
        "[::1",
        "localhost.evil",
        "a@127.0.0.1b",
    ],
)
def test_other_names_are_not_answered(server: Server, host: str):
    reply = server.client.get("/", headers={"host": host})
    assert reply.status_code == 421 and "127.0.0.1" in one_line(reply.json())
    assert "content-security-policy" in reply.headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:8000", "[::1]:8000"])
def test_own_names_are(server: Server, host: str):
    assert server.client.get("/api/about", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999"])
def test_other_pages_may_not_ask(server: Server, origin: str):
    reply = server.client.post(
        "/api/search",
        content=b'{"text": "x"}',
        headers={"origin": origin, "content-type": "text/plain"},
    )
    assert reply.status_code == 403 and "another page" in one_line(reply.json())
    server.ask("/api/search", {"text": "x"}, headers={"origin": "http://127.0.0.1:8000"})


@pytest.mark.parametrize(
    "path",
    [
        "/pyproject.toml",
        "/page.css",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/pictures/..%2f..",
        "/api/pictures/-1",
        "/api/pictures/1.5",
        "/api/images/../about",
        "/api/images/%00",
        "/api",
    ],
)
def test_there_is_nothing_else(server: Server, path: str):
    reply = server.client.get(path)
    assert reply.status_code == 404 or reply.url.path == "/api/about"
    if reply.status_code == 404:
        one_line(reply.json())


def test_methods_and_numbers_that_are_not_there(server: Server):
    assert server.client.delete("/").status_code == 405
    assert server.client.get("/api/classify").status_code == 405
    assert "no picture 99" in server.refused("/api/pictures/99", status=404)
    assert "no picture" in server.refused(f"/api/pictures/{10**30}", status=404)
    reply = server.client.get("/api/images/unknown")
    assert reply.status_code == 404 and "drop it again" in one_line(reply.json())


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"labels": []}, "there are no labels"),
        ({"labels": ["", "dog"]}, "a label is empty"),
        ({"labels": "dog"}, "labels must be a list"),
        ({"labels": [1]}, "a label must be a text"),
        ({}, "labels must be a list"),
        (
            {"labels": [f"label {i}" for i in range(10_000)]},
            "10,000 labels are too many; at most 1,000",
        ),
        ({"labels": ["x" * 201]}, "a label has 201 characters; at most 200"),
        ({"labels": ["dog"], "prompt": "a photo"}, "put {} in it"),
        ({"labels": ["dog"], "prompt": "{}" * 501}, "prompt has 1,002 characters"),
        ({"labels": ["dog"], "image": 5}, "image must be a text"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_questions(server: Server, image: str, fields: dict[str, Any], told: str):
    assert told in server.refused("/api/classify", {"image": image} | fields)


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"text": 1}', b'{"text": "  "}'],
    ids=["cut", "list", "null", "deep", "bytes", "number", "blank"],
)
def test_bad_json(server: Server, body: bytes):
    server.refused("/api/search", body)


@pytest.mark.parametrize("count", [0, -1, 101, 1.5, True, "3", None])
def test_bad_counts(server: Server, count: Any):
    told = server.refused("/api/search", {"text": "x", "count": count})
    assert told == "count must be a whole number from 1 to 100"


def test_odd_texts_are_texts(server: Server, image: str):
    labels = ["\ud83d", "💚", "a\u202eb", "x" * 200, "{}"]
    answer = server.ask("/api/classify", {"image": image, "labels": labels})
    assert len(answer["labels"]) == len(labels)
    assert len(server.ask("/api/search", {"text": "long " * 199})["found"]) == COUNT


def test_paths_stay_on_the_terminal(tmp_path: Path, monkeypatch, capsys):
    """A disk that fails, and a defect of ours."""
    server = Server(write_pictures(tmp_path / "a.tar"))

    def fail(*_: object) -> dict[str, bytes]:
        raise OSError(f"{tmp_path} cannot be read")

    assert server.index is not None
    monkeypatch.setattr(server.index._source, "read", fail)
    for method in ("GET", "POST"):
        reply = server.client.request(method, "/api/pictures/3")
        assert reply.status_code == 400 and "terminal" in one_line(reply.json())
        assert f"picture 3: {tmp_path} cannot be read" in capsys.readouterr().err
    assert server.ask("/api/search", {"text": "x"})["found"][0]["caption"] == ""

    def defect() -> None:
        raise RuntimeError(f"in {tmp_path}")

    monkeypatch.setattr(server.answers, "about", defect)
    reply = server.client.get("/api/about")
    assert reply.status_code == 500 and "made a mistake" in one_line(reply.json())
    assert "content-security-policy" in reply.headers
    assert f"RuntimeError: in {tmp_path}" in capsys.readouterr().err
