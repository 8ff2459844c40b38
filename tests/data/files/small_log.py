"""A small log of one's own, its items and its schema, for tests to spoil."""

import gzip
import io

import numpy as np
import pandas as pd

from tf_twostage.data.log import BanditLog

SCHEMA = """\
user_id: visitor
item_id: product
propensity: pscore
reward: click
position: slot
time: at
user_features: {gender: categorical}
context_features: {hour: numeric}
item_features: {genres: bag, price: numeric}
title: name
"""


def read(log, items=None, schema="native", users=None, **options):
  return BanditLog.from_files(log, items=items, users=users, schema=schema, **options)


def frame(n=8):
  """A valid log of four users and three items."""
  row = np.arange(n)
  return pd.DataFrame(
    {
      "visitor": [f"v{i % 4}" for i in row],
      "product": [f"p{i % 3}" for i in row],
      "pscore": [0.5, 0.25] * (n // 2),
      "click": row % 2,
      "slot": row % 3,
      "at": [f"2024-05-01T12:00:{i:02d}Z" for i in row],
      "gender": [("F", "M")[i % 2] for i in row],
      "hour": row % 24,
    }
  )


def items():
  return pd.DataFrame(
    {
      "product": ["p0", "p1", "p2", "p9"],
      "name": ["Zero", "One", "Two", "Nine"],
      "genres": ["a|b", "", "b", "c|a"],
      "price": [1.0, 2.5, 0.0, 4.0],
    }
  )


def write(directory, log=None, *, name="log.csv", schema=SCHEMA):
  """Writes log, items.csv and schema.yaml; returns their paths. `log` may be a frame or bytes."""
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / name
  log = frame() if log is None else log
  if isinstance(log, pd.DataFrame):
    if name.endswith(".parquet"):
      buffer = io.BytesIO()
      log.to_parquet(buffer)
      log = buffer.getvalue()
    else:
      log = log.to_csv(index=False).encode()
      log = gzip.compress(log) if name.endswith(".gz") else log
  path.write_bytes(log)
  items().to_csv(directory / "items.csv", index=False)
  (directory / "schema.yaml").write_text(schema)
  return path, directory / "items.csv", directory / "schema.yaml"
