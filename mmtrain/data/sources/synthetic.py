"""Made-up samples, for tests of speed."""

import io
import json
from collections.abc import Collection

import numpy as np
from PIL import Image

from mmtrain.data.order.plan import even_pieces
from mmtrain.errors import UsageError

SYNTHETIC = "synthetic:"
_MOST = 10**9


class SyntheticSource:
    """Made-up samples: noise as JPEG and captions of random words, functions of the number.

    For tests of speed: decoding costs what a photograph of that size costs.

    Raises:
        UsageError: the number is none.
    """

    SIDE = 256
    NUM_PICTURES = 16
    WORDS = ("red", "green", "blue", "small", "large", "round", "dog", "cat", "tree", "house")

    def __init__(self, spec: str, *, key: str = "data.train") -> None:
        count = spec.removeprefix(SYNTHETIC)
        if not count.isdecimal() or not 1 <= int(count) <= _MOST:
            raise UsageError(
                f"{key} = {spec} must be {SYNTHETIC}N with the number of samples N, at most {_MOST}"
            )
        self.num_samples = int(count)
        self.shard_sizes = even_pieces(self.num_samples)
        self._pictures = [self._picture(number) for number in range(self.NUM_PICTURES)]

    def _picture(self, number: int) -> bytes:
        # Smooth noise: white noise would be a JPEG four times the size of a photograph.
        coarse = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((self.SIDE, self.SIDE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    @property
    def fingerprint(self) -> str:
        """Of the number of samples."""
        return f"synthetic-{self.num_samples}"

    def key(self, sample: int) -> str:
        """The number."""
        return str(sample)

    def place(self, sample: int) -> str:
        """Nowhere."""
        return "synthetic"

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """A JPEG of 256 x 256 pixels and a caption of 4 to 19 words."""
        generator = np.random.default_rng(sample)
        words = generator.choice(self.WORDS, size=int(generator.integers(4, 20)))
        members = {
            "jpg": self._pictures[sample % self.NUM_PICTURES],
            "txt": " ".join(words).encode(),
            "json": json.dumps({"number": sample}).encode(),
        }
        return {k: v for k, v in members.items() if wanted is None or k in wanted}
