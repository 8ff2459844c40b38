"""From raw features to vectors: lookup, embedding, two towers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.data.histories import AGES, FIRST, PADDING, UNKNOWN, age_codes
from tf_twostage.data.schema import (
  Bag,
  Categorical,
  Embedding,
  Feature,
  FeatureTable,
  Id,
  ItemSequence,
  Numeric,
  Schema,
  SparseVector,
  TimedSequence,
  columns,
)
from tf_twostage.errors import InputError
from tf_twostage.losses.replicas import all_rows
from tf_twostage.models.sequence_encoder import SequenceEncoder

_LARGEST = 1e12  # the square is far from the largest float32, and so are sums of products

Codes = Mapping[str, tf.Tensor]
Tower = Callable[..., Any]  # a Keras model or layer, or a function without arguments that makes one


class Towers(Protocol):
  """A fitted stage as an export needs it: scores are query(user) . candidate(item)."""

  @property
  def variables(self) -> Sequence[Any]:
    """All variables that `query` reads."""
    ...

  def query(self, user: Codes) -> tf.Tensor:
    """User vectors, [B, D]."""
    ...

  def candidates(self) -> tf.Tensor:
    """Item vectors of the catalogue, [N, D]."""
    ...


class FeatureLookup(tf.Module):
  """Raw values -> codes: strings become integers, numbers and sparse vectors are scaled.

  Numbers beyond ±1e12, after scaling, count as ±1e12, so that scores of any finite number are
  finite. Code 0 is any value outside the vocabulary. A bag also needs a code for padding: there 0
  is padding and 1 is out of vocabulary. A sparse vector loses positions outside its size, and gets
  length 1 unless it is empty. Codes depend on the schema alone, so that one lookup serves
  every model of a run.
  """

  def __init__(self, features: Sequence[Feature]):
    super().__init__()
    self._features = tuple(features)
    looked_up = [f for f in features if isinstance(f, Categorical)]
    looked_up += [Bag(f.events, f.kinds) for f in _with_kinds(features)]
    self._tables = {f.name: _table(f) for f in looked_up}

  def __call__(self, raw: FeatureTable) -> dict[str, tf.Tensor]:
    """Codes of the features in `raw`: int64, [B] or [B, max_length]; numbers float32 [B].

    An embedding is float32 [B, width]. A sequence is [B, any length], oldest first, with padding
    before. A sparse vector has ids int32 and weights float32,
    [B, max_length] each.
    """
    codes = {}
    for f in self._features:
      if isinstance(f, Numeric):
        value = tf.cast(raw[f.name], tf.float64)  # seconds since 1970 need more than 24 bits
        value = tf.clip_by_value((value - f.offset) / f.scale, -_LARGEST, _LARGEST)
        codes[f.name] = tf.cast(value, tf.float32)
      elif isinstance(f, Embedding):
        value = tf.cast(raw[f.name], tf.float32) / f.scale
        codes[f.name] = tf.clip_by_value(value, -_LARGEST, _LARGEST)
      elif isinstance(f, SparseVector):
        ids, weights = tf.convert_to_tensor(raw[f.ids]), tf.cast(raw[f.weights], tf.float32)
        known = (ids >= 0) & (ids < f.size)
        weights = tf.clip_by_value(tf.where(known, weights, 0.0), -_LARGEST, _LARGEST)
        codes[f.ids] = tf.cast(tf.where(known, ids, 0), tf.int32)
        length = tf.norm(weights, axis=-1, keepdims=True)
        codes[f.weights] = tf.math.divide_no_nan(weights, length)
      else:
        codes[f.name] = self._code(f.name, raw[f.name])
        if isinstance(f, ItemSequence):
          codes |= self._with_events(f, codes[f.name], raw)
    return codes

  def _code(self, name: str, texts: Any) -> tf.Tensor:
    return self._tables[name].lookup(tf.convert_to_tensor(texts, tf.string))

  def _with_events(
    self, f: ItemSequence, items: tf.Tensor, raw: FeatureTable
  ) -> dict[str, tf.Tensor]:
    """Codes of a sequence, of which `items` are looked up, with the padding first."""
    order, values = _padding_first(items), {f.name: items, **{name: raw[name] for name in f.beside}}
    codes = {name: tf.gather(value, order, batch_dims=1) for name, value in values.items()}
    if isinstance(f, TimedSequence):
      codes[f.ages] = age_codes(codes[f.name], codes[f.ages])
    if f.kinds:
      kinds = self._code(f.events, codes[f.events])
      codes[f.events] = tf.where(codes[f.name] > 0, tf.maximum(kinds, UNKNOWN), PADDING)
    return codes


@dataclasses.dataclass(frozen=True)
class EncodedTables:
  """Users and items of a data set as codes, looked up once for all models of a run.

  Sequences are not among them: they differ between rows, see `LogRows.past`.
  """

  schema: Schema
  users: Codes  # [U, ...] each
  items: Codes  # [N, ...] each
  context_lookup: FeatureLookup

  @classmethod
  def encode(cls, schema: Schema, users: FeatureTable, items: FeatureTable) -> EncodedTables:
    return cls(
      schema,
      FeatureLookup([f for f in schema.user_inputs if not isinstance(f, ItemSequence)])(users),
      FeatureLookup(schema.item_inputs)(items),
      FeatureLookup(schema.context),
    )

  def example(self) -> Codes:
    """What a user tower reads, of the first two users, with an empty sequence."""
    few = {name: codes[:2] for name, codes in self.users.items()}
    names = [name for f in self.schema.sequences for name in columns(f)]
    return few | {name: tf.zeros([2, 1], tf.int64) for name in names}


class FeatureEncoder(tf.keras.layers.Layer):
  """Codes -> one vector: embeddings side by side, numbers as they are.

  A bag is the mean of its values' embeddings, which is a normalised multi-hot vector times a
  matrix; a sparse vector is the weighted sum of its positions'. Every embedding starts from the
  same normal distribution, except out-of-vocabulary and padding rows, which start (and, untrained,
  stay) at zero. A sparse vector's sum starts from that distribution, too, its length being 1, and
  so does the product of a given vector and a matrix, since the mean square of its numbers is 1.

  A sequence has embeddings of its own for the items, to which those of ages and of kinds of events
  are added, and a `SequenceEncoder` of the sums.

  With `EncoderConfig.id_buckets`, ids whose places in the vocabulary differ by a multiple of it
  share an embedding. Buckets have equal sizes, and the first ids do not share with each other.
  """

  def __init__(
    self,
    features: Sequence[Feature],
    config: EncoderConfig,
    l2: float,
    *,
    sparse_l2: bool = False,
    **kwargs,
  ):
    super().__init__(**kwargs)
    self._features = tuple(features)
    self._touched_l2 = l2 if sparse_l2 else 0.0
    self._buckets = {
      f.name: config.id_buckets
      for f in features
      if isinstance(f, Id | ItemSequence) and 0 < config.id_buckets < len(f.vocabulary)
    }
    self._embeddings = {
      f.name: tf.keras.layers.Embedding(
        _special_rows(f) + self._num_values(f),
        config.id_width if isinstance(f, Id | ItemSequence) else config.feature_width,
        embeddings_initializer=_zero_rows_first(
          _special_rows(f), tf.keras.initializers.RandomNormal(stddev=config.embedding_stddev)
        ),
        embeddings_regularizer=None if sparse_l2 else l2_regularizer(l2),
        name=f.name,
      )
      for f in features
      if not isinstance(f, Numeric | Embedding)
    }
    for layer in self._embeddings.values():
      layer.build(None)  # variables exist from here on: checkpoints restore before the first call
    self._projections = {
      f.name: dense(
        f.width,
        config.id_width,
        l2,
        use_bias=False,  # a vector of zeros tells nothing
        kernel_initializer=tf.keras.initializers.RandomNormal(
          stddev=config.embedding_stddev / f.width**0.5
        ),
        name=f.name,
      )
      for f in features
      if isinstance(f, Embedding)
    }
    self._length = config.sequence_length
    tables = {f.ages: (1, AGES) for f in features if isinstance(f, TimedSequence)}
    tables |= {f.events: (FIRST, len(f.kinds)) for f in _with_kinds(features)}
    self._beside = {
      name: tf.keras.layers.Embedding(
        special + values,
        config.id_width,
        embeddings_initializer=_zero_rows_first(
          special, tf.keras.initializers.RandomNormal(stddev=config.embedding_stddev)
        ),
        embeddings_regularizer=l2_regularizer(l2),
        name=name,
      )
      for name, (special, values) in tables.items()
    }
    for layer in self._beside.values():
      layer.build(None)
    self._sequences = {
      f.name: SequenceEncoder(
        config.sequence_encoder,
        config.id_width,
        config.sequence_length,
        config.embedding_stddev,
        l2_regularizer(l2),
        name=f"{f.name}_encoder",
      )
      for f in features
      if isinstance(f, ItemSequence)
    }
    for layer in self._sequences.values():
      shape = 1, config.sequence_length
      layer(tf.zeros([*shape, config.id_width]), tf.ones(shape, tf.bool))
    self.width = (
      sum(layer.output_dim for layer in self._embeddings.values())
      + sum(layer.units for layer in self._projections.values())
      + sum(isinstance(f, Numeric) for f in features)
    )

  def call(self, codes: Codes) -> tf.Tensor:
    """Args: codes of the features, from `FeatureLookup`. Returns: [B, width] float32."""
    return tf.concat([self._encode(f, codes) for f in self._features], axis=-1)

  def touched_penalty(self, codes: Codes) -> tf.Tensor:
    """l2/2 times the squared norm of the embeddings that `codes` read, each counted once."""
    penalty = tf.constant(0.0)
    if not self._touched_l2:
      return penalty
    for f in self._features:
      if isinstance(f, Numeric | Embedding):
        continue
      if isinstance(f, SparseVector):
        read = tf.boolean_mask(codes[f.ids], codes[f.weights] != 0)
      else:
        read = tf.reshape(self._rows(f, codes), [-1])
      rows = tf.gather(self._embeddings[f.name].embeddings, tf.unique(read).y)
      penalty += self._touched_l2 * tf.nn.l2_loss(rows)
    return penalty

  def _num_values(self, feature: Categorical | SparseVector) -> int:
    if isinstance(feature, SparseVector):
      return feature.size
    return self._buckets.get(feature.name, len(feature.vocabulary))

  def _rows(self, feature: Categorical, codes: Codes) -> tf.Tensor:
    """Rows of the embedding, by code."""
    code, buckets = codes[feature.name], self._buckets.get(feature.name)
    if isinstance(feature, ItemSequence):
      code = code[:, -self._length :]
    special = _special_rows(feature)
    if buckets is None:
      return code
    return tf.where(code < special, code, special + (code - special) % buckets)

  def _encode(self, feature: Feature, codes: Codes) -> tf.Tensor:
    if isinstance(feature, Numeric):
      return codes[feature.name][..., tf.newaxis]
    if isinstance(feature, Embedding):
      return self._projections[feature.name](codes[feature.name])
    embedding = self._embeddings[feature.name]
    if isinstance(feature, SparseVector):
      return _weighted_sum(codes[feature.ids], codes[feature.weights], embedding.embeddings)
    rows = self._rows(feature, codes)
    vectors = embedding(rows)
    if not isinstance(feature, Bag):
      return vectors
    if isinstance(feature, ItemSequence):
      for name in feature.beside:
        vectors += self._beside[name](codes[name][:, -self._length :])
      return self._sequences[feature.name](vectors, rows > 0)
    present = tf.cast(codes[feature.name] > 0, tf.float32)[..., tf.newaxis]
    return tf.math.divide_no_nan(tf.reduce_sum(vectors * present, -2), tf.reduce_sum(present, -2))


class TwoTower(tf.keras.layers.Layer):
  """Scores users against the whole catalogue: logits = query(user) . candidate(item).

  By default the item vector is the concatenation of the item's embeddings, and the user side goes
  through ReLU and a linear layer to the item's width. A custom tower maps a dict of codes, as
  `FeatureLookup` makes them, to vectors [B, D]; only its own regularizers apply to it.
  """

  def __init__(
    self,
    tables: EncodedTables,
    config: EncoderConfig,
    *,
    l2: float,
    sparse_l2: bool = False,
    use_context: bool = False,
    item_bias: bool | np.ndarray = False,
    user_tower: Tower | None = None,
    item_tower: Tower | None = None,
    **kwargs,
  ):
    """Args:
    tables: the schema and the catalogue.
    config: embedding widths and initializer.
    l2: weight of half the squared norm of all weights.
    sparse_l2: penalize only the embeddings (and item biases) that a batch reads, by
      `touched_penalty`, instead of whole tables. A step then costs the same for tables of any
      size, and the effective weight of a row is l2 times the share of steps that read it.
    use_context: whether the user side also reads the context features.
    item_bias: whether every item has a learned number, the same for all users. It is the last
      coordinate of the item's vector; the last coordinate of a user is then 1. Numbers [N]: where
      it starts, and l2 draws it to.
    user_tower, item_tower: a Keras model, or a function that makes one; None: the default.
    """
    super().__init__(**kwargs)
    schema = tables.schema
    check_sequence_settings(schema, config)
    self._item_codes = tables.items
    encoder = functools.partial(FeatureEncoder, config=config, l2=l2, sparse_l2=sparse_l2)
    context = schema.context if use_context else ()
    if item_tower is None:
      self._items = encoder(schema.item_inputs, name="items")
      width = self._items.width
    else:
      self._items, width = _custom("item_tower", item_tower, tables.items)
    self._projection = None
    if user_tower is None:
      self._users = encoder((*schema.user_inputs, *context), name="users")
      self._projection = dense(self._users.width, width, l2, name="projection")
    else:
      self._users, own_width = _custom("user_tower", user_tower, tables.example())
      if own_width != width:
        raise InputError(
          f"user_tower returns vectors of width {own_width}, but the item tower's have {width}, and"
          " scores are their products; give both one width"
          + ("" if item_tower else f", such as Dense({width}) as the last layer of user_tower")
        )
    self._touched_l2 = l2 if sparse_l2 else 0.0
    self._bias = None
    self._bias_start = None if isinstance(item_bias, bool) else tf.constant(item_bias, tf.float32)
    if item_bias is not False:
      self._bias = self.add_weight(
        name="item_bias",
        shape=[schema.num_items],
        initializer="zeros",
        regularizer=None if sparse_l2 else l2_regularizer(l2),
      )

  @classmethod
  def of(
    cls, tables: EncodedTables, encoder: EncoderConfig, training: FitConfig, **options: Any
  ) -> TwoTower:
    """Towers with the penalties of these training settings; see `TwoTower` for the options."""
    return cls(tables, encoder, l2=training.l2, sparse_l2=training.sparse_l2, **options)

  def custom_digest(self) -> str:
    """Identifies the custom towers by their classes, settings and current weights."""
    digest = hashlib.sha256()
    for tower in (self._users, self._items):
      if isinstance(tower, FeatureEncoder):
        continue
      digest.update(f"{type(tower).__module__}.{type(tower).__qualname__}".encode())
      with contextlib.suppress(Exception):  # subclasses of Model need not have a config
        # Keras numbers layers by how many there were before.
        digest.update(re.sub(r'_\d+"', '"', json.dumps(tower.get_config(), default=str)).encode())
      for weights in tower.get_weights():
        digest.update(f"{weights.shape} {weights.dtype}".encode() + weights.tobytes())
    return digest.hexdigest()

  def query(self, user: Codes, training: bool = False) -> tf.Tensor:
    """User vectors [B, D] from user codes (and context codes, where used)."""
    if self._projection is None:
      vectors = _vectors(self._users, user, training)
    else:
      vectors = self._projection(tf.nn.relu(self._users(user)))
    if self._bias is None:
      return vectors
    return tf.concat([vectors, tf.ones_like(vectors[:, :1])], axis=1)

  def candidates(self, actions: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
    """Item vectors [N, D] of the whole catalogue, or [B, D] of `actions` [B]."""
    bias = self._bias
    if bias is not None and self._bias_start is not None:
      bias = bias + self._bias_start
    if bias is not None and actions is not None:
      bias = tf.gather(bias, actions)
    return self._item_vectors(self._codes_of(actions), bias, training)

  def new_candidates(self, items: Codes) -> tf.Tensor:
    """Item vectors [M, D] of items from outside the catalogue, by their codes; unbiased."""
    bias = None if self._bias is None else tf.zeros([len(next(iter(items.values())))])
    return self._item_vectors(items, bias)

  def touched_penalty(self, user: Codes, actions: tf.Tensor | None = None) -> tf.Tensor:
    """The penalty of `sparse_l2` for what the global batch reads, the same in every replica; or 0.

    `user` are codes of this replica's rows, `actions` [M] the items that are read; None: all.
    """
    if not self._touched_l2:
      return tf.constant(0.0)
    user = {name: all_rows(values) for name, values in user.items()}
    actions = None if actions is None else all_rows(actions)
    penalty = tf.constant(0.0)
    for side, codes in ((self._users, user), (self._items, self._codes_of(actions))):
      if isinstance(side, FeatureEncoder):
        penalty += side.touched_penalty(codes)
    if self._bias is not None:
      rows = self._bias if actions is None else tf.gather(self._bias, tf.unique(actions).y)
      penalty += self._touched_l2 * tf.nn.l2_loss(rows)
    return penalty

  def _codes_of(self, actions: tf.Tensor | None) -> Codes:
    if actions is None:
      return self._item_codes
    return {name: tf.gather(values, actions) for name, values in self._item_codes.items()}

  def _item_vectors(
    self, codes: Codes, bias: tf.Tensor | None, training: bool = False
  ) -> tf.Tensor:
    vectors = _vectors(self._items, codes, training)
    return vectors if bias is None else tf.concat([vectors, bias[:, tf.newaxis]], axis=1)

  def call(self, user: Codes) -> tf.Tensor:
    """Logits over the catalogue, [B, N]."""
    return tf.matmul(self.query(user), self.candidates(), transpose_b=True)

  def pair_logits(self, user: Codes, actions: tf.Tensor) -> tf.Tensor:
    """Logits of one item a user, [B]."""
    return tf.reduce_sum(self.query(user) * self.candidates(actions), axis=-1)


def check_sequence_settings(schema: Schema, config: EncoderConfig) -> None:
  """Refuses settings of sequences where there is none."""
  for name in ("sequence_encoder", "sequence_length"):
    value = getattr(config, name)
    if not schema.sequences and value != getattr(EncoderConfig, name):
      raise InputError(
        f"{name}={value} changes nothing: users have no sequence feature; add one to user_features"
        " of the schema, or leave the setting out"
      )


def _custom(name: str, tower: Tower, codes: Codes) -> tuple[tf.keras.Model, int]:
  """A custom tower with all its variables, and its width."""
  model = tower if isinstance(tower, tf.keras.layers.Layer) else tower()
  few = {feature: values[:2] for feature, values in codes.items()}
  try:
    shape = _vectors(model, few, training=False).shape
  except Exception as error:  # whatever a custom model raises
    found = {feature: f"{v.dtype.name} {v.shape}" for feature, v in few.items()}
    raise InputError(
      f"{name} fails on codes of two rows ({' '.join(str(error).split())[:300]}); its input is a"
      f" dict, here {found}"
    ) from error
  if len(shape) != 2 or shape[0] != len(next(iter(few.values()))):
    raise InputError(f"{name} returns {shape} for two rows; return one vector for each, [B, D]")
  return model, shape[1]


def _vectors(tower: tf.keras.layers.Layer, codes: Codes, training: bool) -> tf.Tensor:
  if isinstance(tower, FeatureEncoder):
    return tower(codes)
  names = getattr(tower, "input_names", None)  # a functional model warns of others
  options = {"training": training} if "training" in inspect.signature(tower.call).parameters else {}
  return tower({n: v for n, v in codes.items() if not names or n in names}, **options)


def dense(inputs: int, units: int, l2: float, **kwargs) -> tf.keras.layers.Dense:
  """A built linear layer: U(-1/sqrt(inputs), 1/sqrt(inputs)) at first, L2 on its weights."""
  uniform = tf.keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
  layer = tf.keras.layers.Dense(
    units,
    kernel_regularizer=l2_regularizer(l2),
    bias_regularizer=l2_regularizer(l2),
    **{"kernel_initializer": uniform, **kwargs},
  )
  layer.build((None, inputs))
  return layer


def l2_regularizer(l2: float) -> tf.keras.regularizers.Regularizer | None:
  """l2/2 * sum(w^2), whose gradient is l2 * w (what other frameworks call weight decay)."""
  return tf.keras.regularizers.L2(l2 / 2) if l2 else None


def _weighted_sum(ids: tf.Tensor, weights: tf.Tensor, embeddings: tf.Tensor) -> tf.Tensor:
  """Σ_l weights[b, l] embeddings[ids[b, l]], [B, D]. Entries of weight 0 cost no time."""
  entries = tf.where(weights != 0)
  columns = tf.cast(tf.gather_nd(ids, entries), tf.int64)
  shape = tf.stack([tf.shape(ids, tf.int64)[0], embeddings.shape[0]])
  # By rows, a product takes a third of the time of tf.sparse.sparse_dense_matmul.
  matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
    indices=tf.stack([entries[:, 0], columns], axis=1),
    values=tf.gather_nd(weights, entries),
    dense_shape=shape,
  )
  return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=embeddings)


def _with_kinds(features: Sequence[Feature]) -> list[ItemSequence]:
  """The sequences whose events have kinds."""
  return [f for f in features if isinstance(f, ItemSequence) and f.kinds]


def _special_rows(feature: Categorical | SparseVector) -> int:
  """Number of embeddings for unknown values and padding."""
  return 0 if isinstance(feature, SparseVector) else 2 if isinstance(feature, Bag) else 1


def _table(feature: Categorical) -> tf.lookup.StaticHashTable:
  special = _special_rows(feature)
  keys, codes = list(feature.vocabulary), list(range(special, special + len(feature.vocabulary)))
  if isinstance(feature, Bag):
    keys, codes = ["", *keys], [0, *codes]
  return tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(keys, codes, tf.string, tf.int64), special - 1
  )


def _padding_first(codes: tf.Tensor) -> tf.Tensor:
  """The order of codes [B, L] that has all zeros first, and the others as they are: [B, L]."""
  return tf.argsort(tf.cast(codes > 0, tf.int32), stable=True)


def _zero_rows_first(rows: int, initializer):
  def initialize(shape, dtype=None):
    known = initializer((shape[0] - rows, *shape[1:]), dtype)
    return tf.concat([tf.zeros((rows, *shape[1:]), known.dtype), known], axis=0)

  return initialize
