"""The machine's own rate at a matrix product, `python -m benchmarks.peers.gemm ROWS INNER COLUMNS WORKERS`: one process of one thread each, all
at once."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time

import torch

SECONDS = 1.0


def rate(rows: int, inner: int, columns: int, workers: int) -> float:
    """Floating-point operations a second (two a multiply-add), float32, of (rows, inner) times (inner, columns), over all workers."""
    words = [sys.executable, "-m", "benchmarks.peers.gemm", *map(str, (rows, inner, columns, workers))]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def one(shape: tuple[int, int, int]) -> float:
    """One worker's share."""
    torch.set_num_threads(1)
    rows, inner, columns = shape
    a, b, out = torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns)
    torch.mm(a, b, out=out)
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS:
        torch.mm(a, b, out=out)
        done += 1
    return done * 2.0 * rows * inner * columns / passed


if __name__ == "__main__":
    *numbers, processes = map(int, sys.argv[1:])
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        print(sum(pool.map(one, [tuple(numbers)] * processes, chunksize=1)))  # type: ignore[arg-type]
