"""open_clip's configs, every one: the features of the two libraries, or why it is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmtrain.errors import UsageError
from tests.interop.every_open_clip import NAMES, compare, table

REFUSED = {
    "coca_base": "a CoCa is not supported",
    "coca_ViT-B-32": "a CoCa is not supported",
    "coca_ViT-L-14": "a CoCa is not supported",
    "coca_roberta-ViT-B-32": "a CoCa is not supported",
    # Its config contradicts itself: timm refuses such images in open_clip too.
    "ViTamin-XL-384": "image_size = 256, but vitamin_xlarge_384 of timm takes 384 pixels",
}
SAMPLE = (
    "RN50-quickgelu",
    "MobileCLIP-S1",
    "EVA02-B-16",
    "PE-Core-T-16-384",
    "nllb-clip-base",
    "roberta-ViT-B-32",
)
"""One of each kind that is quick."""


@pytest.mark.parametrize(
    "name", [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_features_are_open_clips(name):
    if name in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[name]):
            compare(name)
    else:
        assert compare(name)[1] < 1e-5


def test_a_library_is_imported_where_it_is_used_alone():
    code = "import sys, mmtrain.loading; print({'timm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()", done


@pytest.mark.slow
def test_the_docs_say_what_is_read():
    """Written by `python -m tests.interop.every_open_clip > docs/models.md`."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert page == table()
    assert page.count("evaluates, trains") >= 139
