"""A made-up log in files, of which everything is known: who logged, who likes what."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd
import yaml

USERS, ITEMS, SEGMENTS, GENRES = 120, 25, 4, 5
SCHEMA = {
  "time": "time",
  "user_features": {"segment": "categorical", "age": "numeric"},
  "item_features": {"genre": "categorical", "price": "numeric"},
  "title": "title",
}


@dataclasses.dataclass
class World:
  """Change what you like, then write it."""

  users: pd.DataFrame
  items: pd.DataFrame
  log: pd.DataFrame
  schema: dict
  logging: np.ndarray  # [U, N] probabilities
  reward: np.ndarray  # [U, N] probability of a reward

  def write(self, directory: pathlib.Path) -> pathlib.Path:
    directory.mkdir(parents=True, exist_ok=True)
    self.log.to_csv(directory / "log.csv", index=False)
    self.items.to_csv(directory / "items.csv", index=False)
    self.users.to_csv(directory / "users.csv", index=False)
    (directory / "schema.yaml").write_text(yaml.safe_dump(self.schema))
    return directory

  def value(self, policy: np.ndarray) -> float:
    """Expected reward of a policy [U, N], users of the log drawn uniformly."""
    return float((policy * self.reward).sum(axis=1).mean())


def make(rows=3000, seed=0, ranker_score=False, by_user=False) -> World:
  """A log whose policy knows segments and genres, not quite what people like.

  Args:
    rows: of the log.
    seed: of everything.
    ranker_score: whether the log has scores of a ranker.
    by_user: whether the logging policy also has a leaning for each user, which no feature tells.
  """
  rng = np.random.default_rng(seed)
  segment, genre = rng.integers(SEGMENTS, size=USERS), rng.integers(GENRES, size=ITEMS)
  taste = rng.normal(size=(SEGMENTS, GENRES))[segment][:, genre]
  quality = rng.normal(scale=0.5, size=ITEMS)
  reward = 1 / (1 + np.exp(1.0 - 1.5 * taste - quality))
  believed = 0.6 * taste + rng.normal(scale=0.7, size=(SEGMENTS, GENRES))[segment][:, genre]
  if by_user:
    believed = believed + rng.normal(scale=1.0, size=(USERS, GENRES))[:, genre]
  logging = np.exp(believed + rng.normal(scale=0.5, size=ITEMS))
  logging /= logging.sum(axis=1, keepdims=True)
  user = rng.integers(USERS, size=rows)
  drawn = (logging[user].cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
  action = np.minimum(drawn, ITEMS - 1)
  log = pd.DataFrame(
    {
      "user_id": np.char.add("u", user.astype(str)),
      "item_id": np.char.add("i", action.astype(str)),
      "propensity": logging[user, action],
      "reward": (rng.random(rows) < reward[user, action]).astype(int),
      "time": 1_600_000_000 + np.arange(rows) * 60,
    }
  )
  schema = {name: value for name, value in SCHEMA.items()}
  if ranker_score:
    log["score"] = (2 * taste + quality)[user, action]
    schema["ranker_score"] = "score"
  return World(
    users=pd.DataFrame(
      {
        "user_id": [f"u{i}" for i in range(USERS)],
        "segment": np.char.add("s", segment.astype(str)),
        "age": rng.integers(18, 80, size=USERS),
      }
    ),
    items=pd.DataFrame(
      {
        "item_id": [f"i{i}" for i in range(ITEMS)],
        "genre": np.char.add("g", genre.astype(str)),
        "price": rng.uniform(1, 9, size=ITEMS).round(2),
        "title": [f"Item {i}" for i in range(ITEMS)],
      }
    ),
    log=log,
    schema=schema,
    logging=logging,
    reward=reward,
  )
