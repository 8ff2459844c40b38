"""Errors of estimated examination on invented slates, whose true examination is known.

  python -m benchmarks.examination --slates=200000

A row for each method and kind of clicks: the largest error of a slot, the largest standard error
that the estimate claims, how many slots have the truth in their 95% interval, and seconds. Two
policies serve the slates; --strength is the standard deviation of their logits. Rows of users who
leave have the cascade of `make_slates`, and those of trust its trust bias.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd

from tf_twostage import estimate_examination
from tf_twostage.data.sets import SlateWorld, make_slates

SIZE = 10
CONTINUATION = np.linspace(0.6, 0.9, SIZE)
TRUST = np.stack([np.full(SIZE, 0.98), 0.65 / np.arange(1, SIZE + 1) ** 0.7], axis=1)
# Method, options of the estimate, behaviour of users.
CASES: list[tuple[str, dict[str, bool], dict[str, np.ndarray]]] = [
  ("harvesting", {}, {}),
  ("randomized", {}, {}),
  ("em", {}, {}),
  ("em", {"trust_bias": True}, {"trust": TRUST}),
  ("cascade", {}, {"continuation": CONTINUATION}),
]


def truth(world: SlateWorld, logits: np.ndarray, num_slates: int = 200_000) -> np.ndarray:
  """Examination by slot relative to slot 0; of a cascade the share of slates of one policy."""
  if world.continuation is None:
    examined = world.examination * (world.trust[:, 0] - world.trust[:, 1])
    return examined / examined[0]
  rng = np.random.default_rng(1)
  users = rng.integers(len(world.users), size=num_slates)
  items, _ = world.draw(logits, users, rng)
  leaves = (1 - world.continuation) * world.relevance[users[:, None], items]
  stays = np.cumprod(1 - leaves, axis=1).mean(axis=0)
  return np.concatenate([[1.0], stays[:-1]])


def measure(num_slates: int, strength: float, seed: int) -> pd.DataFrame:
  """The table, a row for each of `CASES`."""
  rows = []
  for method, options, behaviour in CASES:
    world = make_slates(
      slate_size=SIZE, policies={"old": strength, "new": strength}, seed=seed, **behaviour
    )
    log = world.log(num_slates, seed)
    true = np.mean([truth(world, logits) for logits in world.policies.values()], axis=0)
    start = time.perf_counter()
    found = estimate_examination(log, method, seed=seed, **options)
    inside = (found.low <= true + 1e-9) & (true <= found.high + 1e-9)
    rows.append(
      {
        "clicks": next(iter(behaviour), "position-based"),
        "method": method,
        "largest error": np.abs(found.curve - true).max(),
        "largest standard error": found.standard_error.max(),
        "slots in interval": f"{inside.sum()} of {SIZE}",
        "seconds": time.perf_counter() - start,
      }
    )
    print(found, flush=True)
  return pd.DataFrame(rows)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--slates", type=int, default=200_000)
  parser.add_argument("--strength", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  frame = measure(arguments.slates, arguments.strength, arguments.seed)
  print(frame.to_string(index=False, float_format="{:.4f}".format))


if __name__ == "__main__":
  main()
