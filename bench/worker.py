"""``python -m bench.worker`` times one package's losses on request, for `bench.compare`.

It reads one JSON request per line and answers each with one line. A package cannot be imported
twice in one process. So each revision has a worker of its own, which waits while the other
measures.
"""

from __future__ import annotations

import json
import sys
import time

import torch

import fused_contrastive

from .losses import DTYPES, LOSSES, make_inputs, parse_size
from .measure import MIN_SAMPLE, Step

WARM = 0.05
"""Steps of fewer seconds than this are repeated once, untimed, before each sample.

The other worker's sample has just emptied the caches.
"""


class Worker:
    """A worker answers requests.

    ``prepare`` chooses the loss and says how long a step takes, and ``sample`` times it.
    """

    def __init__(self):
        self.step, self.estimate = None, 0.0

    def prepare(self, loss: str, size: str, dtype: str) -> dict:
        inputs = make_inputs(loss, parse_size(size), DTYPES[dtype], torch.device("cpu"))
        self.step = Step(LOSSES[loss].call, inputs)
        self.step(2)
        repeats = 1
        while True:
            began = time.perf_counter()
            self.step(repeats)
            taken = time.perf_counter() - began
            if taken > MIN_SAMPLE or repeats > 10_000:
                break
            repeats *= 2
        self.estimate = taken / repeats
        return {"seconds": self.estimate}

    def sample(self, repeats: int) -> dict:
        if self.estimate < WARM:
            self.step(1)
        forward, backward = self.step(repeats)
        return {"forward": forward, "backward": backward}

    def package(self, threads: int) -> dict:
        torch.set_num_threads(threads)
        return {"file": fused_contrastive.__file__, "backends": fused_contrastive.backends()}


def main() -> int:
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
