"""Errors of estimated examination on invented slates, whose true examination is known.

  python -m benchmarks.examination --slates=200000
  python -m benchmarks.examination --slates=4000 --users=400 --items=20 --slots=5 --logs=200

A row for each method and kind of clicks: the largest error of a slot, the largest standard error
that the estimate claims, how many slots have the truth in their 95% interval, and seconds. Two
policies serve the slates; --strength is the standard deviation of their logits. Rows of users who
leave have the cascade of `make_slates`, and those of trust its trust bias. "relevance known" fits
the same line to the true relevance of each row, which shows what the clicks of a log allow. With
--logs, shares of so many logs whose 95% interval of a slot contains the truth, for methods without
a model.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd

from tf_twostage import BanditLog, Examination, estimate_examination
from tf_twostage.data.sets import SlateWorld, make_slates
from tf_twostage.evaluation import click_sums
from tf_twostage.evaluation.click_sums import Clicks


class Case(NamedTuple):
  """A method with options, and how users behave."""

  method: str
  options: dict[str, bool]
  behaviour: dict[str, np.ndarray]


def cases(size: int, models: bool) -> list[Case]:
  """All cases for slates of so many slots, or those without a model of relevance."""
  found = [
    Case("harvesting", {}, {}),
    Case("randomized", {}, {}),
    Case("cascade", {}, {"continuation": np.linspace(0.6, 0.9, size)}),
  ]
  trust = np.stack([np.full(size, 0.98), 0.65 / np.arange(1, size + 1) ** 0.7], axis=1)
  more = [Case("em", {}, {}), Case("em", {"trust_bias": True}, {"trust": trust})]
  return found + more * models


def make(arguments: argparse.Namespace, case: Case) -> tuple[SlateWorld, np.ndarray]:
  """The world of a case, and its true examination."""
  world = make_slates(
    arguments.users,
    arguments.items,
    arguments.slots,
    policies={"old": arguments.strength, "new": arguments.strength},
    seed=arguments.seed,
    **case.behaviour,
  )
  return world, np.mean([truth(world, logits) for logits in world.policies.values()], axis=0)


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


def inside(found: Examination, true: np.ndarray) -> np.ndarray:
  """Which slots but the first have the truth in their interval, [L - 1]."""
  return ((found.low <= true) & (true <= found.high))[1:]


def measure(arguments: argparse.Namespace) -> pd.DataFrame:
  """Errors on one log, a row for each case."""
  rows = []
  for case in cases(arguments.slots, models=True):
    world, true = make(arguments, case)
    log = world.log(arguments.slates, arguments.seed)
    start = time.perf_counter()
    found = estimate_examination(log, case.method, seed=arguments.seed, **case.options)
    rows.append(
      {
        "clicks": next(iter(case.behaviour), "position-based"),
        "method": case.method,
        "largest error": np.abs(found.curve - true).max(),
        "largest standard error": found.standard_error.max(),
        "slots in interval": f"{inside(found, true).sum()} of {len(true) - 1}",
        "seconds": time.perf_counter() - start,
      }
    )
    print(found, flush=True)
    if case.options:  # the last
      error = np.abs(known(world, log) - true).max()
      rows.append({"clicks": "trust", "method": "relevance known", "largest error": error})
  return pd.DataFrame(rows)


def known(world: SlateWorld, log: BanditLog) -> np.ndarray:
  """The curve [L] that clicks with trust bias give if the relevance of all rows is known."""
  users, items = (
    pd.Index(table.iloc[:, 0]).get_indexer(pd.Index(key.vocabulary))
    for table, key in ((world.users, log.schema.user_id), (world.items, log.schema.item_id))
  )
  rows, relevance = log.rows, world.relevance[users[log.rows.user_index], items[log.rows.action]]
  one, clicked = np.ones(len(log)), rows.reward.astype(float)
  clicks = Clicks(rows.position, clicked, np.zeros(len(log), int), int(rows.position.max()) + 1)
  sums = clicks.sums(one, relevance, clicked, relevance**2, relevance * clicked)
  return click_sums.from_products(sums[0])[0]


def coverage(arguments: argparse.Namespace) -> pd.DataFrame:
  """Shares of intervals with the truth, over logs, a row for each case without a model."""
  rows = []
  for case in cases(arguments.slots, models=False):
    world, true = make(arguments, case)
    logs = ((seed, world.log(arguments.slates, seed)) for seed in range(arguments.logs))
    hits = [inside(estimate_examination(log, case.method, seed=s), true) for s, log in logs]
    share = np.mean(hits, axis=0)
    rows.append({"method": case.method, "lowest of a slot": share.min(), "mean": share.mean()})
  return pd.DataFrame(rows)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--slates", type=int, default=200_000)
  parser.add_argument("--users", type=int, default=300)
  parser.add_argument("--items", type=int, default=100)
  parser.add_argument("--slots", type=int, default=10)
  parser.add_argument("--logs", type=int, default=0)
  parser.add_argument("--strength", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  frame = coverage(arguments) if arguments.logs else measure(arguments)
  print(frame.to_string(index=False, float_format="{:.4f}".format))


if __name__ == "__main__":
  main()
