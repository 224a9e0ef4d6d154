"""The coin that decides: uniform numbers from seed, partition and offset alone, so a replay tosses the same.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, 2014).
"""

from __future__ import annotations

from typing import Final

MASK: Final = (1 << 64) - 1
GOLDEN: Final = 0x9E3779B97F4A7C15
UNIT: Final = 2.0**-53


def mix(number: int) -> int:
    """Return 64 well mixed bits of a number; a bijection on 64 bits.

    >>> hex(mix(0)), mix(1) != mix(2)
    ('0xe220a8397b1dcdaf', True)
    """
    z = (number + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class Coin:
    """Uniform numbers in [0, 1) of one partition; `toss` decides on instances, `draw` places exploration.

    `pick` says which of the others go to the log without a label; it owes nothing to the other two.

    >>> Coin(seed=0, partition=0).toss(41) == Coin(seed=0, partition=0).toss(41)
    True
    """

    __slots__ = ("_blocks", "_offsets", "_picks")

    def __init__(self, seed: int, partition: int) -> None:
        self._offsets = mix(mix(seed) ^ (2 * partition))
        self._blocks = mix(mix(seed) ^ (2 * partition + 1))
        self._picks = mix(mix(mix(seed)) ^ partition)

    def toss(self, offset: int) -> float:
        """Return the number of an instance."""
        return (mix(self._offsets ^ offset) >> 11) * UNIT

    def draw(self, block: int) -> float:
        """Return the number of an exploration block."""
        return (mix(self._blocks ^ block) >> 11) * UNIT

    def pick(self, offset: int) -> float:
        """Return the number of an instance that nobody is asked about."""
        return (mix(self._picks ^ offset) >> 11) * UNIT
