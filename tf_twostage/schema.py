"""What a tower reads: the features of users, items and context, with their vocabularies.

A schema holds facts about the data only. Embedding widths and initialisers are
hyper-parameters and live with the models.

Raw values, as they stand in files and in requests to an exported model:

=============  ===================================  =======================
feature        raw value                            array
=============  ===================================  =======================
`Id`           string; its position in the          str, [rows]
               vocabulary is the catalogue index
`Categorical`  string                               str, [rows]
`Numeric`      number                               float64, [rows]
`Bag`          several strings, padded with ""      str, [rows, max_length]
=============  ===================================  =======================
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from tf_twostage.errors import InputError

FeatureTable = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Categorical:
  """One value out of a vocabulary; values outside it share one embedding."""

  name: str
  vocabulary: tuple[str, ...]

  def __post_init__(self):
    if not self.vocabulary:
      raise InputError(f"feature {self.name!r}: the vocabulary is empty")
    if len(set(self.vocabulary)) != len(self.vocabulary):
      raise InputError(f"feature {self.name!r}: the vocabulary repeats a value; make it unique")
    if "" in self.vocabulary:
      raise InputError(f'feature {self.name!r}: "" marks padding and cannot be in the vocabulary')


@dataclasses.dataclass(frozen=True)
class Id(Categorical):
  """The key of a user or an item: row i of its table holds vocabulary[i]."""


@dataclasses.dataclass(frozen=True)
class Bag(Categorical):
  """Up to `max_length` values out of a vocabulary, read as a normalised multi-hot vector."""

  max_length: int = 1


@dataclasses.dataclass(frozen=True)
class Numeric:
  """A number, read as (value - offset) / scale."""

  name: str
  offset: float = 0.0
  scale: float = 1.0

  def __post_init__(self):
    if not self.scale > 0:
      raise InputError(f"feature {self.name!r}: scale must be positive, got {self.scale}")


Feature = Categorical | Numeric
_KINDS = {kind.__name__: kind for kind in (Id, Categorical, Bag, Numeric)}


@dataclasses.dataclass(frozen=True)
class Schema:
  """The features of the three sides; `user` and `item` each hold exactly one `Id`."""

  user: tuple[Feature, ...]
  item: tuple[Feature, ...]
  context: tuple[Feature, ...] = ()

  def __post_init__(self):
    for side in ("user", "item"):
      ids = [f.name for f in getattr(self, side) if isinstance(f, Id)]
      if len(ids) != 1:
        raise InputError(f"schema: the {side} side needs exactly one Id feature, found {ids}")
    names = [f.name for f in (*self.user, *self.item, *self.context)]
    if len(set(names)) != len(names):
      raise InputError(f"schema: feature names must differ, got {names}")

  @property
  def user_id(self) -> Id:
    return next(f for f in self.user if isinstance(f, Id))

  @property
  def item_id(self) -> Id:
    return next(f for f in self.item if isinstance(f, Id))

  @property
  def num_users(self) -> int:
    return len(self.user_id.vocabulary)

  @property
  def num_items(self) -> int:
    return len(self.item_id.vocabulary)

  def to_json(self) -> str:
    sides = {
      side: [{"kind": type(f).__name__, **dataclasses.asdict(f)} for f in getattr(self, side)]
      for side in ("user", "item", "context")
    }
    return json.dumps(sides)

  @classmethod
  def from_json(cls, text: str) -> Schema:
    def feature(spec):
      kind = _KINDS[spec.pop("kind")]
      if "vocabulary" in spec:
        spec["vocabulary"] = tuple(spec["vocabulary"])
      return kind(**spec)

    return cls(**{side: tuple(map(feature, specs)) for side, specs in json.loads(text).items()})


def check_table(features: Sequence[Feature], table: FeatureTable, what: str) -> int:
  """Returns the number of rows of `table`, or says what does not fit `features`.

  Args:
    features: the features that `table` must hold.
    table: raw values by feature name.
    what: the table's name in messages, such as "user features".

  Raises:
    InputError: a column is missing, has the wrong rank, holds NaN, or differs in length.
  """
  missing = [f.name for f in features if f.name not in table]
  if missing:
    raise InputError(f"{what}: missing column(s) {missing}; found {sorted(table)}")
  rows = {f.name: len(table[f.name]) for f in features}
  if len(set(rows.values())) > 1:
    raise InputError(f"{what}: columns differ in length: {rows}")
  for f in features:
    values = np.asarray(table[f.name])
    rank = 2 if isinstance(f, Bag) else 1
    if values.ndim != rank:
      raise InputError(f"{what}: column {f.name!r} must have rank {rank}, got shape {values.shape}")
    if isinstance(f, Numeric):
      bad = np.flatnonzero(~np.isfinite(values.astype(np.float64)))
      if bad.size:
        raise InputError(
          f"{what}: column {f.name!r} holds {bad.size} of {len(values)} values that are not"
          f" finite (first: row {bad[0]}); fill or drop them"
        )
  return next(iter(rows.values()))
