"""A process that computes: weights that are trained piece by piece, a table that is kept up to date, draws, a log.

Prints `ready` when it holds all it will hold; from then on it changes at fixed rates, a tenth of a second at a time.
"""

import time

import numpy

WEIGHTS = 150_000_000  # float32: 572 MiB
DRAWS = 26_000_000  # int64: 198 MiB
TABLE = 1_000_000
TICK_S = 0.1
WEIGHTS_PER_TICK = 131_072  # 5 MiB/s
TABLE_PER_TICK = 200
DRAWS_PER_TICK = 400


def main():
    chance = numpy.random.default_rng(1)
    weights = chance.standard_normal(WEIGHTS, dtype=numpy.float32)
    draws = chance.integers(0, 1 << 20, DRAWS)
    table = {f"entry-{n}": float(n) for n in range(TABLE)}
    log = []
    print("ready", flush=True)
    at, due = 0, time.monotonic()
    while True:
        piece = weights[at : at + WEIGHTS_PER_TICK]
        piece -= numpy.float32(0.01) * piece + numpy.float32(0.001)
        at = (at + WEIGHTS_PER_TICK) % (WEIGHTS - WEIGHTS_PER_TICK)
        for n in chance.integers(0, TABLE, TABLE_PER_TICK):
            table[f"entry-{n}"] += 1.0
        places = chance.integers(0, DRAWS, DRAWS_PER_TICK)
        draws[places] = chance.integers(0, 1 << 20, DRAWS_PER_TICK)
        log.append(f"{time.time():.3f} loss {float(piece[0]):.6f}")
        due += TICK_S
        time.sleep(max(0.0, due - time.monotonic()))


main()
