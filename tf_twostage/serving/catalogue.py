"""Items added to or removed from the catalogue after training.

A new item gets its vectors from its features, with the embedding of unknown ids in place of its own
id's. A removed item has no vector, id or title in the export, so that it cannot be returned.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.data import feature_tables
from tf_twostage.data.log_schema import FeatureColumn
from tf_twostage.data.schema import (
  Bag,
  Categorical,
  Embedding,
  FeatureTable,
  Numeric,
  Schema,
  SparseVector,
  check_table,
)
from tf_twostage.errors import InputError, require
from tf_twostage.models.encoders import Codes, FeatureLookup, Towers
from tf_twostage.models.slate_ranker import SlateRanker, TowerRanker

_log = logging.getLogger(__name__)


class Pair(NamedTuple):
  """Both stages of one catalogue: the arguments of `ServableRecommender` except slate_size."""

  schema: Schema
  generator: Towers
  ranker: SlateRanker
  titles: np.ndarray  # [N]


@dataclasses.dataclass(frozen=True, eq=False)
class NewItems:
  """Items to add."""

  features: FeatureTable  # raw item features by name, [M, ...] each, including the id
  titles: np.ndarray  # [M]


def change(pair: Pair, *, removed: Sequence[str] = (), new: NewItems | None = None) -> Pair:
  """Returns the pair with another catalogue: items are removed, then new ones appended.

  Args:
    pair: fitted.
    removed: item ids; blanks around an id are ignored if no item has them. A warning counts the ids
      that are not in the catalogue.
    new: items to add. A removed item may be added again.
  """
  if not len(removed) and new is None:
    return pair
  schema = pair.schema
  known = set(schema.item_id.vocabulary)
  gone = {item if item in known else item.strip() for item in removed}
  if unknown := sorted(gone - known):
    _log.warning("%d removed items were not in the catalogue (first: %r)", len(unknown), unknown[0])
  kept = np.array([i for i, item in enumerate(schema.item_id.vocabulary) if item not in gone], int)
  ids, titles, codes = [schema.item_id.vocabulary[i] for i in kept], pair.titles[kept], None
  if new is not None:
    rows = check_table(schema.item, new.features, "items to add")
    if len(new.titles) != rows:
      raise InputError(f"items to add: {len(new.titles)} titles for {rows} items")
    added = np.asarray(new.features[schema.item_id.name])
    rule = "must not be in the catalogue already"
    remedy = "leave these items out, or also remove them, to replace them"
    require(~np.isin(added, [*(known - gone)]), "items to add: the ids", rule, remedy, added)
    ids, titles = ids + added.tolist(), np.concatenate([titles, new.titles])
    codes = FeatureLookup(schema.item_inputs)(new.features)
  if not ids:
    raise InputError("all items are to be removed; leave some to recommend")
  item_id = dataclasses.replace(schema.item_id, vocabulary=tuple(ids))
  item = tuple(item_id if f is schema.item_id else f for f in schema.item)
  ranker: SlateRanker
  if isinstance(pair.ranker, TowerRanker):
    ranker = TowerRanker(_ChangedTowers(pair.ranker.towers, kept, codes), pair.ranker.scale)
  elif codes is None:
    ranker = _ReducedRanker(pair.ranker, kept)
  else:
    raise InputError(
      f"items cannot be added: the ranker ({type(pair.ranker).__name__}) scores only the items it"
      " was trained with; train it with the new items, then train again"
    )
  return Pair(
    dataclasses.replace(schema, item=item),
    _ChangedTowers(pair.generator, kept, codes),
    ranker,
    titles,
  )


class _ChangedTowers:
  """Towers with another catalogue."""

  def __init__(self, towers: Towers, kept: np.ndarray, new: Codes | None):
    """Keeps the items with the indices `kept` and appends `new` ones, given as codes."""
    self._towers = towers
    self.variables = towers.variables
    for name in ("passing", "clauses", "contributions"):  # of `StructuredQueries`
      if hasattr(towers, name):
        setattr(self, name, getattr(towers, name))
    self._items = tf.gather(towers.candidates(), kept)
    if new is not None:
      self._items = tf.concat([self._items, self.new_candidates(new)], axis=0)

  def query(self, user: Codes) -> tf.Tensor:
    return self._towers.query(user)

  def candidates(self) -> tf.Tensor:
    return self._items

  def new_candidates(self, items: Codes) -> tf.Tensor:
    describe = getattr(self._towers, "new_candidates", None)
    if describe is None:
      raise InputError(
        f"items cannot be added: {type(self._towers).__name__} has item vectors, but does not"
        " compute them from features; fit the ranker on the log instead"
      )
    return describe(items)


class _ReducedRanker(tf.Module):
  """A ranker of a larger catalogue."""

  def __init__(self, ranker: SlateRanker, kept: np.ndarray):
    """kept: [N], the index of each item in the larger catalogue."""
    super().__init__()
    self._ranker = ranker
    self._kept = tf.Variable(kept, trainable=False, dtype=tf.int32)

  def __call__(self, raw: FeatureTable, codes: Codes, slate: tf.Tensor) -> tf.Tensor:
    return self._ranker(raw, codes, tf.gather(self._kept, slate))


def read_new(path: pathlib.Path, schema: Schema) -> NewItems:
  """Reads items to add: CSV or Parquet with the schema's item features and "title".

  Bags and embeddings are lists, or text with "|" between the values.
  """
  features = [f for f in schema.item if f is not schema.item_id]
  vectors = [f.name for f in features if isinstance(f, SparseVector)]
  if vectors:
    raise InputError(f"{path}: {', '.join(vectors)}: sparse vectors do not fit into a table")
  kinds = {Bag: "bag", Numeric: "numeric", Categorical: "categorical", Embedding: "embedding"}
  columns = [FeatureColumn(f.name, kinds[type(f)]) for f in features]
  table = feature_tables.read(path, schema.item_id.name, columns, "title")
  raw = {schema.item_id.name: feature_tables.strings(table.ids)}
  for column in columns:
    values = table.columns[column.name]
    bag = column.kind == "bag"
    raw[column.name] = feature_tables.split(values, column.separator) if bag else values
  return NewItems(raw, table.columns["title"])


def read_removed(path: pathlib.Path) -> list[str]:
  """Ids of items to remove: UTF-8 text, with or without a byte order mark, an id per line."""
  try:
    with path.open(encoding="utf-8-sig") as file:  # splits at line ends only, unlike splitlines
      return [item for line in file if (item := line.rstrip("\n"))]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(
      f"{path}: not readable as a list of item ids ({error}); write UTF-8 text with an id per line"
    ) from error
