"""Items that came and went since the pair was fitted.

A new item gets its vectors from its features; in place of the id that no tower has seen stands the
embedding of unknown ids. An item that was removed has no vector, no id and no title any more: there
is nothing left of it that could be returned.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.data.schema import FeatureTable, Schema, check_table
from tf_twostage.errors import InputError, require
from tf_twostage.models.encoders import Codes, FeatureLookup, Towers
from tf_twostage.models.slate_ranker import SlateRanker, TowerRanker

_log = logging.getLogger(__name__)


class Pair(NamedTuple):
  """What a `Recommender` is made of, slate size aside; all of one catalogue.

  Attributes:
    schema: its item id lists the catalogue.
    generator: the first stage.
    ranker: the second.
    titles: [N].
  """

  schema: Schema
  generator: Towers
  ranker: SlateRanker
  titles: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class NewItems:
  """Items from outside the catalogue.

  Attributes:
    features: raw item features by name, [M, ...] each, the id among them.
    titles: [M].
  """

  features: FeatureTable
  titles: np.ndarray


def change(pair: Pair, *, removed: Sequence[str] = (), new: NewItems | None = None) -> Pair:
  """The pair with another catalogue: items go, then new ones come, at its end.

  Args:
    pair: fitted.
    removed: ids of items; a warning counts those that are not in the catalogue.
    new: what to add. An item that is removed may be added anew.

  Raises:
    InputError: no item would be left; a new item is in the catalogue already, or its features do
      not fit the schema; or a stage cannot score new items.
  """
  if not len(removed) and new is None:
    return pair
  ids = np.asarray(pair.schema.item_id.vocabulary)
  unknown = sorted(set(removed) - set(ids))
  if unknown:
    _log.warning("%d removed items were not in the catalogue, such as %s", len(unknown), unknown[0])
  kept = np.flatnonzero(~np.isin(ids, list(removed)))
  ids, titles, codes = ids[kept], pair.titles[kept], None
  if new is not None:
    ids = np.concatenate([ids, _checked_ids(pair.schema, ids, new)])
    titles = np.concatenate([titles, new.titles])
    codes = FeatureLookup(pair.schema.item_inputs)(new.features)
  if not ids.size:
    raise InputError("all items are to be removed; leave some to recommend")
  return Pair(
    _with_ids(pair.schema, ids),
    _OtherItems(pair.generator, kept, codes),
    _other_ranker(pair.ranker, kept, codes),
    titles,
  )


class _OtherItems:
  """Towers with another catalogue."""

  def __init__(self, towers: Towers, kept: np.ndarray, new: Codes | None):
    """Args:
    towers: of users and of the former items.
    kept: which of these stay.
    new: codes of items that come behind them.
    """
    self._towers = towers
    self.variables = towers.variables
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
        f"items cannot be added: of {type(self._towers).__name__} only the vectors are known, not"
        " how they follow from features; fit the ranker on the log instead"
      )
    return describe(items)


class _KeptItems(tf.Module):
  """A ranker of a larger catalogue."""

  def __init__(self, ranker: SlateRanker, kept: np.ndarray):
    """Args:
    ranker: of the larger catalogue.
    kept: [N], where the items stand in it.
    """
    super().__init__()
    self._ranker = ranker
    self._kept = tf.Variable(kept, trainable=False, dtype=tf.int32)

  def __call__(self, raw: FeatureTable, codes: Codes, slate: tf.Tensor) -> tf.Tensor:
    return self._ranker(raw, codes, tf.gather(self._kept, slate))


def _other_ranker(ranker: SlateRanker, kept: np.ndarray, new: Codes | None) -> SlateRanker:
  if isinstance(ranker, TowerRanker):
    return TowerRanker(_OtherItems(ranker.towers, kept, new))
  if new is not None:
    raise InputError(
      f"items cannot be added: the ranker ({type(ranker).__name__}) knows no items but those that"
      " it was given; give it the new ones and train again"
    )
  return _KeptItems(ranker, kept)


def _checked_ids(schema: Schema, kept: np.ndarray, new: NewItems) -> np.ndarray:
  rows = check_table(schema.item, new.features, "items to add")
  if len(new.titles) != rows:
    raise InputError(f"items to add: {len(new.titles)} titles for {rows} items")
  ids = np.asarray(new.features[schema.item_id.name])
  rule = "must not be in the catalogue already"
  remedy = "leave these items out, or remove them too, to replace them"
  require(~np.isin(ids, kept), "items to add: the ids", rule, remedy, ids)
  return ids


def _with_ids(schema: Schema, ids: np.ndarray) -> Schema:
  """The schema with another catalogue; says if ids are repeated or empty."""
  other = dataclasses.replace(schema.item_id, vocabulary=tuple(ids.tolist()))
  return dataclasses.replace(
    schema, item=tuple(other if f is schema.item_id else f for f in schema.item)
  )
