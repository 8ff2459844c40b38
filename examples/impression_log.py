"""Writes an invented log of impressions as production writes it: log.csv, items.csv, users.csv.

python examples/impression_log.py DIR --slates=20000

docs/user_logs.md goes from these files to an export.
"""

import argparse
import pathlib

import numpy as np

from tf_twostage.data.sets import make_slates


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("directory", type=pathlib.Path)
  parser.add_argument("--slates", type=int, default=20_000, help="requests of 10 slots each")
  parser.add_argument("--users", type=int, default=300)
  parser.add_argument("--items", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  world = make_slates(args.users, args.items, seed=args.seed)
  log = world.frame(args.slates, seed=args.seed)
  # A click in ten leads to a purchase.
  log["purchase"] = log["click"] * (np.random.default_rng(args.seed).random(len(log)) < 0.1)
  args.directory.mkdir(parents=True, exist_ok=True)
  for name, table in {"log": log, "items": world.items, "users": world.users}.items():
    table.to_csv(args.directory / f"{name}.csv", index=False)
  print(f"{args.directory}: log.csv ({len(log):,} rows), items.csv and users.csv")


if __name__ == "__main__":
  main()
