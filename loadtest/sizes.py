"""How large payloads are: always the same, or drawn from a distribution."""

from __future__ import annotations

import math
import random
import re
from typing import TYPE_CHECKING

from loadtest.payload import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# A log-normal distribution has no end; brokers have.
LARGEST = 16_000_000

_RANGE = re.compile(r"(\d+)-(\d+)")
_LOGNORMAL = re.compile(r"lognormal:(\d+),(\d+(?:\.\d+)?)")
_WEIGHTED = re.compile(r"\d+:\d+(?:\.\d+)?(?:,\d+:\d+(?:\.\d+)?)*")


class Sizes:
    """A distribution of payload sizes in bytes, written as one of these.

    `200`: fixed; `100-1000`: uniform; `lognormal:200,1.0`: median and sigma; `50:0.9,10000:0.1`: sizes and weights.

    Raises:
        ValueError: it is none of them, or has payloads without room for their number and time.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._random = random.Random()  # noqa: S311 - not a secret
        self._draw = self._distribution()

    def sample(self, count: int) -> list[int]:
        """Draw `count` sizes; the same ones each time, so that every forwarder gets the same messages."""
        self._random.seed(1)
        return [self._draw() for _ in range(count)]

    def _distribution(self) -> Callable[[], int]:
        text, draw = self.text, self._random
        if text.isdecimal():
            size = int(text)
            self._check([size])
            return lambda: size
        if found := _RANGE.fullmatch(text):
            least, most = int(found[1]), int(found[2])
            self._check([least, most])
            if least > most:
                raise ValueError(f"{text}: the range is empty")
            return lambda: draw.randint(least, most)
        if found := _LOGNORMAL.fullmatch(text):
            median, sigma = int(found[1]), float(found[2])
            self._check([median])
            mu = math.log(median)
            return lambda: min(max(int(draw.lognormvariate(mu, sigma)), HEADER_BYTES), LARGEST)
        if _WEIGHTED.fullmatch(text):
            pairs = [part.split(":") for part in text.split(",")]
            sizes, weights = [int(size) for size, _ in pairs], [float(weight) for _, weight in pairs]
            self._check(sizes)
            if not any(weights):
                raise ValueError(f"{text}: all weights are 0")
            return lambda: draw.choices(sizes, weights)[0]
        raise ValueError(f"{text!r} is not like 200, 100-1000, lognormal:200,1.0 or 50:0.9,10000:0.1")

    def _check(self, sizes: Iterable[int]) -> None:
        for size in sizes:
            if not HEADER_BYTES <= size <= LARGEST:
                raise ValueError(
                    f"{self.text}: a payload has {HEADER_BYTES} (its number and time) to {LARGEST:,} bytes, not {size}"
                )
