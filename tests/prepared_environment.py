"""A tiny prepared environment: 20 users, 15 items, 60 logged rows."""

import dataclasses

import numpy as np
import pandas as pd

from tf_twostage.config import Config, DataConfig, EncoderConfig, GeneratorConfig
from tf_twostage.data.sets import make_synthetic

DATA = make_synthetic(num_users=20, num_items=15, num_ratings=200)
USERS, ITEMS, ROWS, WIDTH, SLATE, VALIDATION = 20, 15, 60, 4, 12, 8


@dataclasses.dataclass
class Contents:
  """What the three files hold; change it, then write it."""

  relevance: np.ndarray
  log: pd.DataFrame
  user_vectors: np.ndarray
  item_vectors: np.ndarray

  def write(self, directory):
    directory.mkdir(parents=True, exist_ok=True)
    packed = np.packbits(self.relevance, axis=1)
    np.savez(directory / "full_information.npz", relevance=packed)
    self.log.to_csv(directory / "bandit_log.csv", index=False)
    np.savez(
      directory / "ranker.npz", user_vectors=self.user_vectors, item_vectors=self.item_vectors
    )
    return directory


def contents(users=USERS, items=ITEMS, rows=ROWS):
  """Random contents."""
  rng = np.random.default_rng(0)
  return Contents(
    relevance=rng.random((users, items)) < 0.4,
    log=pd.DataFrame(
      {
        "user_index": rng.integers(users, size=rows),
        "item_index": rng.integers(items, size=rows),
        "propensity": rng.uniform(0.05, 0.5, size=rows).astype(np.float32),
        "reward": rng.integers(2, size=rows),
      }
    ),
    user_vectors=rng.normal(size=(users, WIDTH)).astype(np.float32),
    item_vectors=rng.normal(size=(items, WIDTH)).astype(np.float32),
  )


def config(directory, **generator):
  """Settings under which `directory` is the environment; two epochs unless told otherwise."""
  return Config(
    slate_size=SLATE,
    loss="two_stage_ips",
    encoder=EncoderConfig(embedding_stddev=1.0),
    data=DataConfig("synthetic", environment=str(directory), validation_users=VALIDATION),
    generator=GeneratorConfig(**{"epochs": 2, "batch_size": 16, "item_bias": False, **generator}),
  )
