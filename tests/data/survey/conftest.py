"""Data that surveys look at."""

from pathlib import Path

import pytest

from tests.data.shard_files import encoded, write_shard
from tests.data.survey.pictures import landscape


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """20 pictures, of which 3 are twice there: one file again, one smaller, one compressed more;
    two samples cannot be used."""
    samples = []
    for number in range(20):
        image = landscape(number, (96 + number, 72))
        samples.append(
            (
                f"{number:03}",
                {
                    "jpg": encoded(image, "JPEG", quality=92),
                    "txt": "a dog" if number % 2 else f"{number} Katzen und viele Wörter",
                    "json": {"n": number, "kind": "dog" if number % 2 else "cat"},
                },
            )
        )
    samples.append(("same", {"jpg": samples[0][1]["jpg"], "txt": "вечер"}))
    samples.append(("smaller", {"png": encoded(landscape(1, (60, 45)), "PNG"), "txt": "夕方の犬"}))
    samples.append(("again", {"jpg": encoded(landscape(2), "JPEG", quality=60), "txt": "狗"}))
    samples.append(("torn", {"jpg": samples[3][1]["jpg"][:400], "txt": "a dog"}))
    samples.append(("mute", {"png": encoded(landscape(40), "PNG")}))
    write_shard(tmp_path / "0.tar", samples[:13])
    write_shard(tmp_path / "1.tar", samples[13:])
    return str(tmp_path / "*.tar")
