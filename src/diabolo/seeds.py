"""Where randomness comes from: one seed folded with words that say what it is for.

The randomness of a step comes from (seed, "step", step, rank), the order of examples from (seed, "order", epoch), the noise
of an evaluation from (seed, image). Nothing depends on what was drawn before, so every run can be resumed anywhere.
"""

from __future__ import annotations

import hashlib

_MASK = (1 << 64) - 1


def fold(seed: int, *words: int | str) -> int:
    """A 63-bit seed from `seed` and `words`; different words give unrelated seeds (SHA-256)."""
    text = "\x1f".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def mix(seed: int, index: int) -> int:
    """A 63-bit seed for one image, cheap enough to be called for each (splitmix64, Steele et al., 2014)."""
    x = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return (x ^ (x >> 31)) >> 1
