"""An invented ratings data set that needs no files, with tastes that can be learned."""

from __future__ import annotations

import numpy as np

from tf_twostage.data.schema import Bag, Categorical, Id, Schema, unit_range
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.errors import InputError

_AGES = ("Under 18", "18-34", "35-54", "55+")
_REGIONS = ("North", "East", "South", "West", "Overseas")
_DECADES = ("1970s", "1980s", "1990s", "2000s", "2010s")
_TOPIC_NAMES = "Art Cooking Crime Fantasy History Music Nature Romance Science Travel"
_TOPICS = tuple(_TOPIC_NAMES.split())
_MAX_TOPICS = 3
_FACTORS = 8
# Cumulative shares of ratings of 1, 1-2, 1-3 and 1-4 stars: 55% are above 3.
_RATING_SHARES = (0.06, 0.17, 0.45, 0.78)
_START, _YEAR = 1_000_000_000, 365 * 24 * 3600


def make_synthetic(
  num_users: int = 400, num_items: int = 300, num_ratings: int = 24_000, seed: int = 0
) -> RatingsData:
  """Invents ratings from a latent-factor model whose factors depend on the features.

  A user's factors are those of age and region plus a personal part, an item's those of decade and
  topics plus a part of its own. A rating is their inner product plus the item's quality plus
  noise, cut into 1 to 5 stars. The number of ratings of an item follows a power law and grows with
  its quality and affinity, so exposure is biased as in real logs.

  Every user rates at least one item, and no item twice. Ratings are ordered by user, time and item.
  """
  if not 1 <= num_users <= num_ratings <= num_users * num_items:
    raise InputError(
      f"synthetic: {num_ratings} ratings are impossible for {num_users} users and {num_items}"
      " items; ask for at least one rating per user and at most one per pair"
    )
  rng = np.random.default_rng(seed)

  def factors(*shape: int) -> np.ndarray:
    return rng.normal(size=(*shape, _FACTORS))

  age = rng.integers(len(_AGES), size=num_users)
  region = rng.integers(len(_REGIONS), size=num_users)
  taste = factors(len(_AGES))[age] + factors(len(_REGIONS))[region] + 0.7 * factors(num_users)

  decade = rng.integers(len(_DECADES), size=num_items)
  # Distinct topics: the first few of a random order of all.
  topics = rng.random((num_items, len(_TOPICS))).argsort(axis=1)[:, :_MAX_TOPICS]
  has_topic = np.arange(_MAX_TOPICS) < rng.integers(1, _MAX_TOPICS + 1, size=(num_items, 1))
  of_topics = np.sum(factors(len(_TOPICS))[topics] * has_topic[..., None], axis=1)
  character = factors(len(_DECADES))[decade] + of_topics + 0.7 * factors(num_items)

  affinity = taste @ character.T
  affinity /= affinity.std() or 1.0
  quality = rng.normal(size=num_items)
  score = affinity + 0.5 * quality + rng.normal(scale=0.5, size=affinity.shape)

  # Gumbel noise makes the largest keys a weighted draw of pairs without replacement.
  popularity_rank = np.argsort(np.argsort(-quality + rng.normal(size=num_items)))
  activity = rng.normal(scale=0.5, size=(num_users, 1))
  key = activity + 0.5 * affinity - np.log1p(popularity_rank) + rng.gumbel(size=affinity.shape)
  key[np.arange(num_users), key.argmax(axis=1)] = np.inf
  pair = np.argpartition(key, -num_ratings, axis=None)[-num_ratings:]
  timestamp = np.floor(_START + rng.uniform(high=_YEAR, size=num_ratings))
  order = np.lexsort((pair % num_items, timestamp, pair // num_items))
  pair, timestamp = pair[order], timestamp[order]
  user_index, item_index = np.divmod(pair, num_items)

  score = score.ravel()[pair]
  rating = 1 + np.searchsorted(np.quantile(score, _RATING_SHARES), score)
  users = {
    "user_id": np.char.add("user_", np.arange(num_users).astype(str)),
    "age": np.array(_AGES)[age],
    "region": np.array(_REGIONS)[region],
  }
  items = {
    "item_id": np.char.add("item_", np.arange(num_items).astype(str)),
    "decade": np.array(_DECADES)[decade],
    "topics": np.where(has_topic, np.array(_TOPICS)[topics], ""),
  }
  schema = Schema(
    user=(
      Id("user_id", tuple(users["user_id"].tolist())),
      Categorical("age", _AGES),
      Categorical("region", _REGIONS),
    ),
    item=(
      Id("item_id", tuple(items["item_id"].tolist())),
      Categorical("decade", _DECADES),
      Bag("topics", _TOPICS, max_length=_MAX_TOPICS),
    ),
    context=(unit_range("timestamp", timestamp),),
  )
  titles = [
    f"{' and '.join(filter(None, names))}, {when}, no. {number}"
    for number, (names, when) in enumerate(zip(items["topics"], items["decade"], strict=True))
  ]
  return RatingsData(
    name="synthetic",
    schema=schema,
    users=users,
    items=items,
    titles=np.array(titles),
    user_index=user_index.astype(np.int32),
    item_index=item_index.astype(np.int32),
    rating=rating.astype(np.float32),
    context={"timestamp": timestamp},
  )
