"""Rankers made elsewhere: a SavedModel, a Keras model, or a Python function that scores pairs.

A model takes raw columns by name, [n] each, as they stand in the tables of users and items. A
function takes two dicts of them. Both return one score for each pair. An export contains the model
or function itself, not an approximation.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.data.schema import Bag, Embedding, Feature, FeatureTable, Numeric, Schema
from tf_twostage.errors import InputError, require
from tf_twostage.models.encoders import Codes

MAX_PAIRS = 10**8  # 400 MB of scores
_PAIRS_PER_CALL = 2**17
_SIGNATURE = "serving_default"
_KERAS_SUFFIXES = (".keras", ".h5")

RankerLike = str | os.PathLike | Callable[..., Any]  # a path, a Keras model, or a function
# From inputs by name to the score of each pair, [n] or [n, 1].
_Call = Callable[[Mapping[str, tf.Tensor]], tf.Tensor]


class ExternalRanker(tf.Module):
  """Scores pairs by calling the model, in training and inside an export alike."""

  def __init__(self, ranker: RankerLike, schema: Schema, items: FeatureTable):
    """Args:
    ranker: directory of a SavedModel, a Keras file, a Keras model, or a function of user
      features and item features (two dicts of tensors, [n, ...] each) that returns scores [n].
    schema: user and item features that the ranker may take.
    items: raw item features, [N, ...] each.
    """
    super().__init__()
    self.path = pathlib.Path(ranker) if isinstance(ranker, str | os.PathLike) else None
    self.place = f"ranker {self.path or getattr(ranker, '__name__', None) or repr(ranker)}"
    of_users = tuple(f for f in schema.user_inputs if f not in schema.sequences)
    features = {"user": of_users, "item": schema.item}
    if self.path is not None:
      self._model, self._call, specs = _load(self.path, self.place)
    elif isinstance(ranker, tf.keras.Model):
      self._model, self._call, specs = _from_keras(ranker, self.place)
    else:
      self._call, specs = self._from_function(ranker, features)
    self._users, self._items = (
      {feature.name: feature for feature in features[side] if feature.name in specs}
      for side in ("user", "item")
    )
    self._specs = specs
    self._check_inputs(schema)
    self._table = {name: tf.constant(_raw(items[name])) for name in self._items}

  def __call__(self, raw: FeatureTable, codes: Codes, slate: tf.Tensor) -> tf.Tensor:
    """Scores of slates, [B, K]; see `slate_ranker.SlateRanker`."""
    width = tf.shape(slate)[1]
    users = {name: tf.repeat(raw[name], width, axis=0) for name in self._users}
    return tf.reshape(self._score(users, tf.reshape(slate, [-1])), tf.shape(slate))

  def check(self, users: FeatureTable) -> None:
    """Scores a few pairs of these users; refuses more than `MAX_PAIRS` pairs."""
    num_users, num_items = len(next(iter(users.values()))), len(next(iter(self._table.values())))
    if num_users * num_items > MAX_PAIRS:
      raise InputError(
        f"{self.place}: {num_users} users x {num_items} items are more than {MAX_PAIRS:,} pairs,"
        " which are scored once and kept; log the ranker's scores and name their column"
        " `ranker_score`, so that a ranker is fitted to them"
      )
    few = np.arange(min(2, num_users, num_items))
    self._checked({name: _raw(users[name])[few] for name in self._users}, tf.constant(few))

  def scores(self, users: FeatureTable) -> np.ndarray:
    """Scores of every user, by raw features [U, ...], and item: [U, N] float32."""
    num_users, num_items = len(next(iter(users.values()))), len(next(iter(self._table.values())))
    out = np.empty((num_users, num_items), np.float32)
    chunk = max(1, _PAIRS_PER_CALL // num_items)
    for start in range(0, num_users, chunk):
      some = {name: _raw(users[name][start : start + chunk]) for name in self._users}
      count = min(chunk, num_users - start)
      raw = {name: np.repeat(values, num_items, axis=0) for name, values in some.items()}
      slate = tf.tile(tf.range(num_items), [count])
      out[start : start + count] = self._checked(raw, slate).reshape(count, num_items)
    return out

  def _from_function(
    self, function: Any, features: Mapping[str, tuple[Feature, ...]]
  ) -> tuple[_Call, dict[str, tf.TensorSpec]]:
    """The function, traced so that the variables that it reads can be saved with it."""
    if not callable(function) or hasattr(function, "layers"):
      raise InputError(
        f"{self.place}: neither a tf.keras.Model of Keras 2, nor a path, nor a function; save a"
        " model of Keras 3 by model.export(DIR) and pass DIR"
      )
    names = {side: [feature.name for feature in of_side] for side, of_side in features.items()}
    specs = {
      f.name: tf.TensorSpec(
        [None, *_own_shape(f)],
        tf.float32 if isinstance(f, Numeric | Embedding) else tf.string,
        f.name,
      )
      for f in (*features["user"], *features["item"])
    }

    def call(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
      sides = ({name: inputs[name] for name in names[side]} for side in ("user", "item"))
      return tf.convert_to_tensor(function(*sides))

    try:
      self._variables = list(tf.function(call).get_concrete_function(specs).variables)
    except Exception as error:  # whatever a user's function raises
      raise InputError(
        f"{self.place}: the function fails on tensors ({_short(error)}); write it with TensorFlow"
        f" operations on the user features {names['user']} and the item features {names['item']}"
      ) from error
    return call, specs

  def _score(self, users: Mapping[str, Any], items: tf.Tensor) -> tf.Tensor:
    """[n] scores of users' raw features [n, ...] and catalogue indices [n]."""
    raw = {**users, **{name: tf.gather(table, items) for name, table in self._table.items()}}
    inputs = {}
    for name, spec in self._specs.items():
      value = tf.convert_to_tensor(raw[name])
      value = value if spec.dtype == tf.string else tf.cast(value, spec.dtype)
      rank = spec.shape.rank
      inputs[name] = value[:, tf.newaxis] if rank is not None and rank > len(value.shape) else value
    return tf.cast(tf.reshape(self._call(inputs), [-1]), tf.float32)

  def _checked(self, users: Mapping[str, np.ndarray], items: tf.Tensor) -> np.ndarray:
    try:
      scores = self._score(users, items).numpy()
    except (tf.errors.OpError, ValueError, TypeError) as error:
      raise InputError(
        f"{self.place}: the model fails on users and items of the log ({_short(error)}); call it"
        " on a few rows of your tables to see why"
      ) from error
    if len(scores) != len(items):
      raise InputError(
        f"{self.place}: {len(items)} pairs got {len(scores)} scores; return one number a pair, [n]"
        " or [n, 1]"
      )
    remedy = "correct the model, or the features that it cannot read"
    finite = np.isfinite(scores)
    require(finite, f"{self.place}: scores", "must be finite", remedy, scores, unit="pair")
    return scores

  def _check_inputs(self, schema: Schema) -> None:
    known = {**self._users, **self._items}
    context = [feature.name for feature in (*schema.context, *schema.sequences)]
    for name, spec in self._specs.items():
      if name in context:
        raise InputError(
          f"{self.place}: input {name!r} is a context feature or a sequence, and pairs of"
          " users and items are scored once, whatever these are; wrap the model with a fixed value"
        )
      if name not in known:
        features = sorted(f.name for f in (*schema.user_inputs, *schema.item))
        raise InputError(
          f"{self.place}: the model takes {name!r}, but no user or item feature of the schema has"
          f" that name; found {features}; add it to the user or item features, or rename the"
          " model's input"
        )
      _check_spec(self.place, name, spec, known[name])
    for side, taken in (("user", self._users), ("item", self._items)):
      if not taken:
        raise InputError(
          f"{self.place}: the model takes no {side} feature, only {sorted(self._specs)}; a ranker"
          " scores pairs of users and items"
        )


def digest(path: str | os.PathLike) -> str:
  """SHA-256 of the model's files, names and contents."""
  path = pathlib.Path(path)
  files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
  result = hashlib.sha256()
  for file in files:
    result.update(f"{file.relative_to(path.parent)} {file.stat().st_size}\n".encode())
    result.update(file.read_bytes())
  return result.hexdigest()


def _load(path: pathlib.Path, place: str) -> tuple[Any, _Call, dict[str, tf.TensorSpec]]:
  """The model, to be kept alive, what to call, and its inputs by name."""
  if not path.exists():
    raise InputError(f"{place}: there is no such file or directory; name where the model is")
  if path.suffix in _KERAS_SUFFIXES:
    try:
      loaded = tf.keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever a damaged file makes Keras raise
      raise InputError(
        f"{place}: Keras 2 does not load it ({_short(error)}); a model of Keras 3 can be given as"
        " a SavedModel: model.export(DIR)"
      ) from error
    return _from_keras(loaded, place)
  if not (path / "saved_model.pb").is_file():
    versions = sorted(p.parent.name for p in path.glob("*/saved_model.pb"))
    hint = f"did you mean {path / versions[-1]}?" if versions else "export one there"
    raise InputError(
      f"{place}: no model; a SavedModel is a directory with saved_model.pb, a Keras model a file"
      f" that ends in .keras; {hint}"
    )
  try:
    model = tf.saved_model.load(str(path))
  except Exception as error:  # whatever a damaged file makes TensorFlow raise
    raise InputError(
      f"{place}: the SavedModel does not load ({_short(error)}); export it again"
    ) from error
  signatures = dict(model.signatures)
  if _SIGNATURE not in signatures and len(signatures) != 1:
    raise InputError(
      f"{place}: signatures are {sorted(signatures)}; save one as {_SIGNATURE!r}, as in"
      " tf.saved_model.save(model, DIR, signatures=score.get_concrete_function(...))"
    )
  call = signatures.get(_SIGNATURE) or next(iter(signatures.values()))
  output = _only_output(place, list(call.structured_outputs))
  return model, lambda inputs: call(**inputs)[output], dict(call.structured_input_signature[1])


def _from_keras(model: Any, place: str) -> tuple[Any, _Call, dict[str, tf.TensorSpec]]:
  if not getattr(model, "inputs", None):
    raise InputError(
      f"{place}: the model's inputs have no names; build it with tf.keras.Input(name=...), or give"
      " a SavedModel with a signature"
    )
  _only_output(place, list(model.output_names))
  specs = {
    name: tf.TensorSpec(given.shape, given.dtype, name)
    for name, given in zip(model.input_names, model.inputs, strict=True)
  }
  return model, lambda inputs: model(dict(inputs), training=False), specs


def _only_output(place: str, outputs: list[str]) -> str:
  if len(outputs) != 1:
    raise InputError(
      f"{place}: the model returns {sorted(outputs)}; return the score alone, or save a signature"
      " that does"
    )
  return outputs[0]


def _check_spec(place: str, name: str, spec: tf.TensorSpec, feature: Feature) -> None:
  is_number = isinstance(feature, Numeric | Embedding)
  kind = "a vector" if isinstance(feature, Embedding) else "a number" if is_number else "text"
  if is_number == (spec.dtype == tf.string):
    raise InputError(
      f"{place}: input {name!r} is {spec.dtype.name}, but the feature is {kind}; declare it"
      f" {'numeric' if not is_number else 'categorical'} in the schema, or convert inside the model"
    )
  own, shape = _own_shape(feature), spec.shape
  fits = shape.is_compatible_with([None, *own]) or (not own and shape.is_compatible_with([None, 1]))
  if not fits or (shape.rank and shape[0] is not None):
    wanted = f"[n, {own[0] or 'length'}]" if own else "[n] or [n, 1]"
    raise InputError(
      f"{place}: input {name!r} has shape {shape}, expected {wanted} for any n; save a signature"
      " that takes a batch of pairs"
    )


def _own_shape(feature: Feature) -> list[int | None]:
  """The shape of one value of a feature."""
  return [feature.width] if isinstance(feature, Embedding) else [None] * isinstance(feature, Bag)


def _raw(values: np.ndarray) -> np.ndarray:
  """As TensorFlow reads them: text as objects, which strings of one width are not."""
  values = np.asarray(values)
  return values.astype(object) if values.dtype.kind in "US" else values


def _short(error: Exception) -> str:
  """What was raised; in errors of traced functions it comes after the places in the code."""
  text = str(error)
  raised = re.search(r"^    (?!File )\S.*", text, re.MULTILINE | re.DOTALL)
  if text.startswith("in user code:") and raised:
    text = raised[0]
  return " ".join(text.split())[:300]
