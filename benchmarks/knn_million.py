"""kNN votes over a bank of a million 2048-dimensional features: seconds and peak memory.

Run as: python benchmarks/knn_million.py [QUERIES]
"""

import json
import resource
import sys
import time

import torch

from simclr.evaluation.neighbours import knn_votes

ROWS, WIDTH, CLASSES = 1_000_000, 2048, 1000


def main() -> None:
    queries = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    bank = torch.empty(ROWS, WIDTH)
    for part in bank.split(1 << 16):
        part.uniform_(-1, 1)
    labels = torch.arange(ROWS) % CLASSES
    start = time.perf_counter()
    votes = knn_votes(bank, labels, bank[:queries], CLASSES, k=200)
    assert (votes.argmax(1) == labels[:queries]).all()  # each query lies in the bank, and is its own nearest
    print(json.dumps({
        "queries": queries,
        "seconds": round(time.perf_counter() - start, 1),
        "bank_gb": bank.nbytes / 1e9,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "threads": torch.get_num_threads(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
