"""Mutates Arrow streams and reads them: ``python fuzz_arrow.py FOLDER COUNT [SEED]``; prints what came of it as JSON.

Every stream must be read or refused with 400 or 422; anything else ends the process.
"""

import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from raystitch.endpoint.arrow_wire import read_arrow_request
from raystitch.endpoint.config import LimitsConfig
from raystitch.endpoint.problems import Problem
from raystitch.endpoint.request import ModelSizes

# Lengths and offsets that lie.
NUMBERS = (0, 1, -1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -(2**63))


def mutate(content: bytearray, rng: random.Random) -> None:
    at, width = rng.randrange(len(content)), rng.choice((4, 8))
    match rng.randrange(7):
        case 0:
            content[at] ^= 1 << rng.randrange(8)
        case 1:
            content[at] = rng.randrange(256)
        case 2:
            content[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
        case 3:
            del content[at : at + rng.choice((1, 2, 4, 8, 16))]
        case 4:
            del content[max(1, at) :]
        case 5:
            at -= at % width
            content[at : at + width] = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
        case _:
            taken = rng.randrange(len(content))
            content[at : at + 8 * width] = content[taken : taken + 8 * width]


def main(folder: str, count: int, seed: int = 0) -> None:
    rng, outcomes, slowest = random.Random(seed), Counter[str](), 0.0
    bases = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        content = bytearray(rng.choice(bases))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            mutate(content, rng)
        begun = time.monotonic()
        try:
            read_arrow_request(bytes(content), lambda _: ModelSizes(4, 2, 2, 8), LimitsConfig())
            outcomes["read"] += 1
        except Problem as problem:
            if problem.status not in (400, 422):
                raise
            outcomes[str(problem.status)] += 1
        slowest = max(slowest, time.monotonic() - begun)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({**outcomes, "slowest_seconds": slowest, "grown_mib": grown}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
