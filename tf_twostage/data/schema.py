"""What a tower reads: the features of users, items and context, with their vocabularies.

A schema holds facts about the data only. Embedding widths and initialisers are
hyper-parameters and live with the models.

Each kind says how its raw values look in files and in requests to an exported model.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import keyword
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tf_twostage.errors import InputError, require

_INPUT = re.compile(r"[A-Za-z]\w*", re.ASCII)
_RESERVED = {*keyword.kwlist, "k", "exclude", "candidates", "temperature", "seed", "self"}
FeatureTable = Mapping[str, np.ndarray]


def can_be_input(name: str) -> bool:
  """Whether an exported model can have an input of this name."""
  return bool(_INPUT.fullmatch(name)) and name not in _RESERVED


def events_of(sequence: str) -> str:
  """The name of the kinds of a sequence's events: of a column of a native log, and of an input."""
  return f"{sequence}_events"


@dataclasses.dataclass(frozen=True)
class Categorical:
  """A string out of a vocabulary, [rows]; values outside it share one embedding."""

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
  """The key of a user or an item, [rows] str: row i of its table holds vocabulary[i].

  With `embedded=False` it only names its row, in a log say, and towers do not read it.
  """

  embedded: bool = True


@dataclasses.dataclass(frozen=True)
class Bag(Categorical):
  """Strings out of a vocabulary, read as a normalised multi-hot vector.

  Raw values are [rows, max_length] str, padded with "".
  """

  max_length: int = 1


@dataclasses.dataclass(frozen=True)
class ItemSequence(Bag):
  """The items of a user's last events, oldest first: what there was before the row of a log.

  It differs between rows of a user, so it is not in the table of users. In requests to an export
  raw values are ids, [rows, any length] str; "" is padding, wherever it stands. With `kinds`, those
  of the events are in "<name>_events", str of the same shape; any other text is an unknown kind.
  """

  kinds: tuple[str, ...] = ()

  @property
  def beside(self) -> tuple[str, ...]:
    """The arrays beside the items: a value for each event."""
    return (self.events,) if self.kinds else ()

  @property
  def events(self) -> str:
    return events_of(self.name)


@dataclasses.dataclass(frozen=True)
class TimedSequence(ItemSequence):
  """An `ItemSequence` with the age of each event, in seconds where times are dates.

  Raw ages are in "<name>_ages", [rows, any length] float64, beside the ids.
  """

  @property
  def ages(self) -> str:
    return f"{self.name}_ages"

  @property
  def beside(self) -> tuple[str, ...]:
    return self.ages, *super().beside


@dataclasses.dataclass(frozen=True)
class Numeric:
  """A number, [rows] float64, read as (value - offset) / scale."""

  name: str
  offset: float = 0.0
  scale: float = 1.0

  def __post_init__(self):
    if not self.scale > 0:
      raise InputError(f"feature {self.name!r}: scale must be positive, got {self.scale}")


@dataclasses.dataclass(frozen=True)
class SparseVector:
  """A vector with few values that are not zero, such as a document's words, scaled to length 1.

  Raw values are positions in "<name>_ids", [rows, max_length] int64, padded with -1, and the value
  at each of them in "<name>_weights", float32.
  """

  name: str
  size: int
  max_length: int

  def __post_init__(self):
    if self.size < 1 or self.max_length < 1:
      raise InputError(
        f"feature {self.name!r}: size and max_length must be at least 1, got {self.size} and"
        f" {self.max_length}"
      )

  @property
  def ids(self) -> str:
    return f"{self.name}_ids"

  @property
  def weights(self) -> str:
    return f"{self.name}_weights"


@dataclasses.dataclass(frozen=True)
class Embedding:
  """A vector of another model, such as of a text or an image, read through a linear layer.

  Raw values are [rows, width] float32 and divided by `scale`; zeros stand for an unknown vector.
  """

  name: str
  width: int
  scale: float = 1.0

  def __post_init__(self):
    if self.width < 1 or not self.scale > 0:
      raise InputError(
        f"feature {self.name!r}: width must be at least 1 and scale positive, got {self.width} and"
        f" {self.scale}"
      )


Feature = Categorical | Numeric | SparseVector | Embedding
_KINDS = {
  kind.__name__: kind
  for kind in (
    Id,
    Categorical,
    Bag,
    ItemSequence,
    TimedSequence,
    Numeric,
    SparseVector,
    Embedding,
  )
}


def columns(feature: Feature) -> tuple[str, ...]:
  """Names of the arrays that hold a feature's raw values."""
  if isinstance(feature, ItemSequence):
    return feature.name, *feature.beside
  return (feature.ids, feature.weights) if isinstance(feature, SparseVector) else (feature.name,)


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
      if not _read(getattr(self, side)):
        raise InputError(
          f"schema: the {side} side has nothing that a tower reads; add a feature, or embed its Id"
        )
    inputs = [name for f in (*self.user, *self.context) for name in columns(f)]
    odd = [name for name in inputs if not can_be_input(name)]
    if odd:
      raise InputError(
        "schema: user and context features are inputs of the exported model. Their names consist"
        " of letters, digits and _, begin with a letter, and are not keywords of Python or"
        f" {', '.join(sorted(_RESERVED - {*keyword.kwlist}))}; rename {odd[:9]} (in a schema file:"
        " new_name: {column: old name})"
      )
    features = (*self.user, *self.item, *self.context)
    names = [name for f in features for name in dict.fromkeys((f.name, *columns(f)))]
    twice = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if twice:
      raise InputError(f"schema: feature names must differ; {twice[0]!r} is there twice")

  @property
  def user_id(self) -> Id:
    return next(f for f in self.user if isinstance(f, Id))

  @property
  def item_id(self) -> Id:
    return next(f for f in self.item if isinstance(f, Id))

  @property
  def sequences(self) -> tuple[ItemSequence, ...]:
    """What differs between rows of a user."""
    return tuple(f for f in self.user if isinstance(f, ItemSequence))

  @property
  def user_table(self) -> tuple[Feature, ...]:
    """The columns of the table of users."""
    return tuple(f for f in self.user if not isinstance(f, ItemSequence))

  @property
  def user_inputs(self) -> tuple[Feature, ...]:
    """What a tower reads of a user: everything but an id that only names."""
    return _read(self.user)

  @property
  def item_inputs(self) -> tuple[Feature, ...]:
    """What a tower reads of an item."""
    return _read(self.item)

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
      for name in {"vocabulary", "kinds"} & {*spec}:
        spec[name] = tuple(spec[name])
      return kind(**spec)

    return cls(**{side: tuple(map(feature, specs)) for side, specs in json.loads(text).items()})


def _read(features: Sequence[Feature]) -> tuple[Feature, ...]:
  return tuple(f for f in features if not isinstance(f, Id) or f.embedded)


def unit_range(name: str, values: np.ndarray) -> Numeric:
  """Returns the numeric feature that reads the smallest of `values` as 0 and the largest as 1."""
  low, high = float(values.min()), float(values.max())
  # One single value has no width to divide by and reads as 0.
  return Numeric(name, offset=low, scale=high - low or 1.0)


def embedding(name: str, values: np.ndarray) -> Embedding:
  """Returns the feature that reads the numbers of vectors [rows, width] with a mean square of 1."""
  scale = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
  return Embedding(name, values.shape[1], scale or 1.0)


def fingerprint_arrays(header: str, arrays: Mapping[str, np.ndarray]) -> str:
  """Returns the SHA-256 of a text and of named arrays, as 64 hex digits."""
  digest = hashlib.sha256(header.encode())
  for name, values in sorted(arrays.items()):
    # Without name, type and shape, different arrays could have the same bytes in a row.
    if values.dtype.kind in "OU":
      cells = [cell.encode("utf-8", "surrogatepass") for cell in values.ravel().tolist()]
      digest.update(f"{name} text {values.shape} {[*map(len, cells)]}".encode())
      digest.update(b"".join(cells))
    else:
      digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
      digest.update(np.ascontiguousarray(values).data)
  return digest.hexdigest()


def is_text(values: np.ndarray) -> bool:
  """Whether an array holds strings alone: NumPy's, or objects."""
  return values.dtype.kind == "U" or all(isinstance(v, str) for v in values.ravel().tolist())


def check_table(features: Sequence[Feature], table: FeatureTable, what: str) -> int:
  """The number of rows of a table; InputError where it does not fit the features."""
  names = {name: f for f in features for name in columns(f)}
  missing = [name for name in names if name not in table]
  if missing:
    raise InputError(f"{what}: missing column(s) {missing}; found {sorted(table)}")
  rows = {name: len(table[name]) for name in names}
  if len(set(rows.values())) > 1:
    raise InputError(f"{what}: columns differ in length: {rows}")
  for name, f in names.items():
    values = np.asarray(table[name])
    rank = 2 if isinstance(f, Bag | SparseVector | Embedding) else 1
    if values.ndim != rank:
      raise InputError(f"{what}: column {name!r} must have rank {rank}, got shape {values.shape}")
    if isinstance(f, Embedding) and values.shape[1] != f.width:
      raise InputError(
        f"{what}: vectors in column {name!r} have {values.shape[1]} numbers, those of the model"
        f" {f.width}; make them by the same model"
      )
    if isinstance(f, Numeric | Embedding):
      finite = np.isfinite(values.astype(np.float64)).reshape(len(values), -1).all(axis=1)
      require(finite, f"{what}: column {name!r}", "must be finite", "fill or drop them", values)
  for f in features:
    if isinstance(f, SparseVector):
      _check_sparse(f, table, what)
  return next(iter(rows.values()))


def _check_sparse(feature: SparseVector, table: FeatureTable, what: str) -> None:
  ids, weights = np.asarray(table[feature.ids]), np.asarray(table[feature.weights])
  if ids.dtype.kind not in "iu" or ids.shape != weights.shape:
    raise InputError(
      f"{what}: {feature.ids!r} and {feature.weights!r} must be integers and numbers of one shape,"
      f" got {ids.dtype} {ids.shape} and {weights.dtype} {weights.shape}"
    )
  if ids.shape[1] > feature.max_length:
    raise InputError(
      f"{what}: {feature.ids!r} is {ids.shape[1]} wide, more than max_length {feature.max_length};"
      " keep the largest weights"
    )
  for name, ok, rule in (
    (feature.ids, (ids >= -1) & (ids < feature.size), f"must lie in [0, {feature.size}); -1 pads"),
    (feature.weights, np.isfinite(weights), "must be finite"),
  ):
    require(ok.all(axis=1), f"{what}: column {name!r}", rule, "drop such entries")
