"""gs:// and az:// meet a server: addresses, listings, ranges, and who asks."""

import json
import os
import time

import pytest

from mmtrain.cli import main
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.storage import stores
from mmtrain.errors import UsageError
from tests.data.shard_files import write_set
from tests.data.storage.cloud_server import cloud_at

KEY = "c2VjcmV0IG9mIGE="


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """An environment that names no store."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "STORAGE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stores._store.cache_clear()
    yield
    stores._store.cache_clear()


@pytest.fixture(scope="module")
def buckets(tmp_path_factory):
    """A bucket `pairs` with three shards in a folder of it, and other files."""
    folder = tmp_path_factory.mktemp("cloud")
    (folder / "pairs" / "deep").mkdir(parents=True)
    write_set(folder / "pairs" / "deep" / "train", (3, 4, 2))
    (folder / "pairs" / "deep" / "train" / "notes.txt").write_text("none")
    return folder


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    """A file of Google's service account, with a key of its own."""
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization as to

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, to.NoEncryption()).decode()
    path = tmp_path_factory.mktemp("account") / "account.json"
    names = {"type": "service_account", "client_email": "a@b.c", "private_key_id": "1"}
    path.write_text(json.dumps({**names, "private_key": pem}))
    return str(path)


ENVIRONMENTS = {
    "google, public": ("gs", "$", {"GOOGLE_BASE_URL": "{url}", "GOOGLE_SKIP_SIGNATURE": "true"}),
    "google, emulator": ("gs", "$", {"STORAGE_EMULATOR_HOST": "{url}"}),
    "google, emulator without a scheme": ("gs", "$", {"STORAGE_EMULATOR_HOST": "{host}"}),
    "google, account": (
        "gs",
        r"Bearer \w+\.\w+\.",
        {"GOOGLE_BASE_URL": "{url}", "GOOGLE_APPLICATION_CREDENTIALS": "{account}"},
    ),
    "azure, key": (
        "az",
        "SharedKey mine:",
        {
            "AZURE_STORAGE_ENDPOINT": "{url}",
            "AZURE_STORAGE_ACCOUNT_NAME": "mine",
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        },
    ),
    "azure, its command's names": (
        "az",
        "SharedKey mine:",
        {
            "AZURE_STORAGE_ENDPOINT": "{url}",
            "AZURE_STORAGE_ACCOUNT": "mine",
            "AZURE_STORAGE_KEY": KEY,
        },
    ),
    "azure, connection string": (
        "az",
        "SharedKey devstoreaccount1:",
        {
            "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName="
            f"devstoreaccount1;AccountKey={KEY};BlobEndpoint={{url}}/devstoreaccount1;"
        },
    ),
    "azure, public": (
        "az",
        "$",
        {
            "AZURE_STORAGE_ENDPOINT": "{url}",
            "AZURE_STORAGE_ACCOUNT_NAME": "mine",
            "AZURE_SKIP_SIGNATURE": "true",
        },
    ),
}


def set_up(monkeypatch, cloud, environment, account=""):
    for name, value in environment.items():
        host = cloud.url.removeprefix("http://")
        monkeypatch.setenv(name, value.format(url=cloud.url, host=host, account=account))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_same_samples_by_each_cloud(buckets, account, monkeypatch, name):
    scheme, needs, environment = ENVIRONMENTS[name]
    local = ShardSource(str(buckets / "pairs/deep/train"))
    with cloud_at(buckets, needs=needs) as cloud:
        set_up(monkeypatch, cloud, environment, account)
        every = [f"{scheme}://pairs/deep/train/00{number}.tar" for number in range(3)]
        for pattern in ("deep/train/", "deep/train", "**/0*.tar", "deep/*/00?.tar"):
            assert expand_patterns(f"{scheme}://pairs/{pattern}") == every
        source = ShardSource(f"{scheme}://pairs/deep/train/{{000..002}}.tar")
        assert [source.read(n) for n in range(9)] == [local.read(n) for n in range(9)]
        assert source.fingerprint == local.fingerprint


@pytest.mark.parametrize("scheme", ["gs", "az"])
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("pairs/none/", "the folder has no *.tar there"),
        ("pairs/none/*.tar", "the glob matches nothing there"),
        ("pairs/no.tar", "there is no such object"),
    ],
)
def test_what_is_not_there_is_told(buckets, monkeypatch, scheme, path, told):
    name = {"gs": "google, public", "az": "azure, key"}[scheme]
    with cloud_at(buckets) as cloud:
        set_up(monkeypatch, cloud, ENVIRONMENTS[name][2])
        with pytest.raises(UsageError) as caught:
            ShardSource(f"{scheme}://{path}", retry_seconds=0)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["google, public", "azure, key", "azure, connection string"])
def test_a_denial_is_told_without_the_secret(buckets, monkeypatch, name, capsys):
    scheme, _, environment = ENVIRONMENTS[name]
    with cloud_at(buckets, needs="nobody") as cloud:
        set_up(monkeypatch, cloud, environment)
        assert main(["data", "check", f"{scheme}://pairs/deep/train/"]) == 2
    told = capsys.readouterr().err
    assert "denies it (403)" in told and KEY not in told


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("value", ["", "minio.local:9000", "nonsense", "http://", "s3://host"])
def test_an_endpoint_that_is_no_address_is_told(monkeypatch, name, value):
    """The client itself panics, with pages of its own on the screen."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f'{name} = "{value}" is no address; write one such as'):
        ShardSource("s3://bucket/a.tar")


def test_a_connection_string_that_is_none_is_told_without_it(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", KEY)
    with pytest.raises(UsageError, match="AZURE_STORAGE_CONNECTION_STRING has no Acc") as caught:
        ShardSource("az://pairs/a.tar")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "status", "form"),
    [
        pytest.param("http", 429, "seconds", marks=pytest.mark.slow),
        ("http", 503, "date"),
        pytest.param("s3", 503, "seconds", marks=pytest.mark.slow),
        pytest.param("gs", 429, "seconds", marks=pytest.mark.slow),
        pytest.param("az", 503, "seconds", marks=pytest.mark.slow),
    ],
)
def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(
    buckets, account, monkeypatch, scheme, form, status
):
    """Asked again after 1, 2, 4 s it would be asked twice too often."""
    local = ShardSource(str(buckets / "pairs/deep/train/000.tar"))
    environments = {
        "http": {},
        "s3": {
            "AWS_ENDPOINT_URL": "{url}",
            "AWS_ACCESS_KEY_ID": "known",
            "AWS_SECRET_ACCESS_KEY": "secret",
        },
        "gs": ENVIRONMENTS["google, account"][2],
        "az": ENVIRONMENTS["azure, key"][2],
    }
    with cloud_at(buckets) as cloud:
        set_up(monkeypatch, cloud, environments[scheme], account)
        start = cloud.url if scheme == "http" else f"{scheme}:/"
        source = ShardSource(f"{start}/pairs/deep/train/000.tar", retry_seconds=30)
        cloud.log.clear()
        cloud.busy_for(3.0, status=status, is_date=form == "date")
        begin = time.monotonic()
        assert source.read(1) == local.read(1)
        assert 1.9 < time.monotonic() - begin < 6
        assert len(cloud.log) == 3  # refused, asked for how long, read


def test_the_wait_that_a_server_asks_for_is_bounded(buckets):
    with cloud_at(buckets) as cloud:
        source = ShardSource(f"{cloud.url}/pairs/deep/train/000.tar", retry_seconds=1.0)
        cloud.busy_for(3600.0, status=503)
        begin = time.monotonic()
        with pytest.raises(OSError, match=r"000.tar .*tried for 1 s .data.retry_seconds.*busy"):
            source.read(1)
        assert time.monotonic() - begin < 3
