"""What the hardware allows: the best of 20 products of 2048 x 2048 matrices, GFLOP/s, measured anew for each line on stdin.

The process stays, so that a measurement costs no start; while it waits it does nothing.
"""

from __future__ import annotations

import json
import sys
import time

import torch


def peak(size: int, repeats: int, dtype: torch.dtype) -> float:
    """The best of `repeats` products, GFLOP/s."""
    a, b = torch.rand(2, size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e9


def main(size: str, repeats: str) -> None:
    for _ in sys.stdin:
        rates = {
            "fp32": peak(int(size), int(repeats), torch.float32),
            "bf16": peak(int(size), max(1, int(repeats) // 4), torch.bfloat16),
        }
        print(json.dumps({name: round(rate, 2) for name, rate in rates.items()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
