"""The example of docs/data.md on object stores, typed as it stands, against a store on loopback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.shard_files import pairs, write_set, write_shard
from tests.data.storage.conftest import Bucket

_ROOT = Path(__file__).parents[3]
_SECTION = re.compile(
    r"^## Object stores$.*?^```sh\n(.*?)^```$.*?^```toml\n(.*?)^```$", re.M | re.S
)
_MMTRAIN = f'mmtrain() {{ "{sys.executable}" -m mmtrain "$@"; }}\n'


@pytest.mark.slow
def test_the_example_of_object_stores_runs(tmp_path: Path, s3: Bucket) -> None:
    """What differs: the bucket, the login, the endpoint, a folder that a test may write, less room
    and fewer workers. And it holds what the page says beneath: after the index a cache that holds
    the set leaves training and `embed` nothing to fetch."""
    script, section = _SECTION.search((_ROOT / "docs/data.md").read_text("utf-8")).groups()  # pyright: ignore[reportOptionalMemberAccess]
    write_set(tmp_path / "pairs", (40, 40))
    (tmp_path / "val").mkdir()
    write_shard(tmp_path / "val" / "000.tar", pairs(80, 12))
    for name in ("pairs", "val"):
        s3.upload(tmp_path / name, name)
    instead = {
        "s3://my-bucket": s3.url,
        "/local/cache": str(tmp_path / "cache"),
        "http://minio.local:9000": os.environ["AWS_ENDPOINT_URL"],
        "AWS_ACCESS_KEY_ID=...": "AWS_ACCESS_KEY_ID=known",
        "AWS_SECRET_ACCESS_KEY=...": "AWS_SECRET_ACCESS_KEY=secret-of-the-test",
        "cache-gb 500": "cache-gb 0.1",
        "cache_gb = 500": "cache_gb = 0.1",
        "workers = 8": "workers = 2",
    }
    for name, value in instead.items():
        assert name in script + section, name
        script, section = script.replace(name, value), section.replace(name, value)
    recipe = (_ROOT / "configs/debug_clip.toml").read_text("utf-8")
    recipe = re.sub(r"^\[data\]$.*?^$", section, recipe, count=1, flags=re.M | re.S)
    recipe = recipe.replace("steps = 20", "steps = 6")
    (tmp_path / "recipe.toml").write_text(recipe, "utf-8")
    classes = [{"id": f"c{n}", "name": f"kind {n}"} for n in range(4)]
    (tmp_path / "classes.json").write_text(json.dumps(classes))

    fresh = {name: each for name, each in os.environ.items() if not name.startswith("AWS_")}
    fresh |= {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euc", _MMTRAIN + script],
        cwd=tmp_path,
        env=fresh,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "secret-of-the-test" not in done.stdout + done.stderr
    lines = map(json.loads, (tmp_path / "runs/pairs/metrics.jsonl").read_text().splitlines())
    assert sum(line["data_bytes_fetched"] for line in lines) == 0
    assert json.loads((tmp_path / "val.json").read_text())["num_samples"] == 12
    keys = json.loads((tmp_path / "features/keys-00000.json").read_text())
    assert len(keys) == 80
