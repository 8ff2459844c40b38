"""A recommender that answers in this process, fitted here or loaded from an export."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tensorflow as tf

from tf_twostage.data.feature_tables import from_parquet, to_parquet
from tf_twostage.data.files.columns import are_dates, as_numbers, as_times
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import FeatureTable, Schema, events_of
from tf_twostage.errors import InputError, require
from tf_twostage.serving.exporting import EXTRA, load_latest
from tf_twostage.serving.servable import TIME, ServableRecommender
from tf_twostage.workspace import read_numbers, to_json

_log = logging.getLogger(__name__)

SETTINGS, USERS = "recommender.json", "users.parquet"
_PAIRS_PER_CALL = 2**22
_USERS_OF_RECALL = 200

Users = pd.DataFrame | Sequence[Any] | str
Excluded = Mapping[Any, Iterable[Any]] | Sequence[Iterable[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
  """A servable recommender, and the users that it was fitted on.

  Attributes:
    model: a `ServableRecommender`, or what a SavedModel of it loads as.
    signature: its `recommend`.
    inputs: the user and context features that it reads, by name.
    users: raw features of the known users, [U, ...] each; None: not known.
    settings: JSON-able. "user_id" is the name of the user ids, "context" the names of the inputs
      that belong to a request and not to the user, "sequences" those that are what a user did, of
      which the last "sequence_length" items are read.
  """

  model: Any
  signature: Callable[..., Mapping[str, tf.Tensor]]
  inputs: Mapping[str, tf.TensorSpec]
  users: FeatureTable | None
  settings: Mapping[str, Any]

  @classmethod
  def of(
    cls,
    model: ServableRecommender,
    schema: Schema,
    users: FeatureTable,
    settings: Mapping[str, Any],
  ) -> Served:
    """A recommender that was fitted in this process."""
    model.scores.get_concrete_function(**model.inputs)  # of any batch size
    names = {
      "user_id": schema.user_id.name,
      "context": [f.name for f in schema.context],
      "sequences": [f.name for f in schema.sequences],
    }
    return cls(
      model,
      model.recommend,
      model.inputs,
      users if schema.user_id.embedded else None,
      {**settings, **names},
    )

  @classmethod
  def load(cls, path: pathlib.Path) -> Served:
    """The newest version in a directory of exports, or one version."""
    version, model = load_latest(path)
    file = version / EXTRA / SETTINGS
    if not file.is_file():
      raise InputError(f"{version}: no {EXTRA}/{SETTINGS}; export the model again")
    signature = model.signatures["recommend"]
    inputs = dict(
      sorted(signature.structured_input_signature[1].items())
    )  # has no order of its own
    users = version / EXTRA / USERS
    return cls(
      model,
      signature,
      {name: spec for name, spec in inputs.items() if name not in ("exclude", "k", TIME)},
      from_parquet(users) if users.is_file() else None,
      read_numbers(file),
    )

  @functools.cached_property
  def items(self) -> np.ndarray:
    """[N] item ids, in catalogue order."""
    return np.array([item.decode() for item in self.model._ids.numpy()], object)

  def files(self, *, users: bool) -> dict[str, bytes]:
    """What an export needs in `assets.extra` to be loaded again.

    With the table of users, recommendations can be asked for by id.
    """
    files = {SETTINGS: to_json(self.settings).encode()}
    if users and self.users is not None:
      files[USERS] = to_parquet(self.users)
    return files

  def recommend(self, users: Users, k: int, exclude: Excluded | None) -> pd.DataFrame:
    """See `TwoStageRecommender.recommend`."""
    if not isinstance(k, int | np.integer) or k < 1:
      raise InputError(f"recommend: k must be a whole number of at least 1, got {k!r}")
    users, features = self._asked(users)
    names = np.asarray(users.get(self.settings["user_id"], users.index))
    excluded = _excluded(exclude, names)
    if exclude is not None and (unknown := {*excluded.flat} - {*self.items, ""}):
      _log.warning(
        "recommend: %d of the items to exclude are not in the catalogue (first: %r)",
        len(unknown),
        min(unknown),
      )
    if TIME in self.settings:
      features[TIME] = _times(users, self.settings[TIME])
    parts = []
    size = max(1, _PAIRS_PER_CALL // len(self.items))
    for start in range(0, len(users), size):
      some = slice(start, start + size)
      answer = self.signature(
        exclude=tf.constant(excluded[some]),
        k=tf.constant(k, tf.int32),
        **self._tensors({name: values[some] for name, values in features.items()}),
      )
      shown = answer["item_id"].numpy() != b""
      row, rank = np.nonzero(shown)
      parts.append(
        pd.DataFrame(
          {
            "user": names[some][row],
            "rank": rank + 1,
            "item": [item.decode() for item in answer["item_id"].numpy()[shown]],
            "title": [title.decode() for title in answer["title"].numpy()[shown]],
            "score": answer["score"].numpy()[shown],
            "generator_score": answer["generator_score"].numpy()[shown],
          }
        )
      )
    return pd.concat(parts, ignore_index=True)

  def explain(self, users: Users, items: Sequence[Any]) -> pd.DataFrame:
    """See `TwoStageRecommender.explain`."""
    if not hasattr(self.model, "explain"):
      raise InputError("explain: only generator=casmos has clauses; this generator has vectors")
    users, features = self._asked(users)
    names, ids = np.asarray(users.get(self.settings["user_id"], users.index)), [*map(_id, items)]
    if len(ids) != len(names):
      raise InputError(f"explain: {len(ids)} items for {len(names)} users; pass an item for each")
    if unknown := {*ids} - {*self.items}:
      raise InputError(f"explain: {len(unknown)} items are unknown (first: {min(unknown)!r})")
    weights = self.model.explain(item=tf.constant(ids), **self._tensors(features)).numpy()
    row, clause = np.nonzero(weights)
    found = pd.DataFrame(
      {
        "user": names[row],
        "item": np.array(ids, object)[row],
        "clause": [text.decode() for text in self.model._clauses.numpy()[clause]],
        "weight": weights[row, clause],
      }
    )
    return found.iloc[np.lexsort([-weights[row, clause], row])].reset_index(drop=True)

  def _asked(self, users: Users) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Users as a table, and their features."""
    by_id = not isinstance(users, pd.DataFrame)
    if not isinstance(users, pd.DataFrame):
      ids = [users] if isinstance(users, str) else [*map(_id, users)]
      users = pd.DataFrame({self.settings["user_id"]: np.array(ids, dtype=object)})
    if users.empty:
      raise InputError("recommend: there are no users; pass at least one")
    return users, self._features(users.reset_index(drop=True), by_id)

  def recall(self, request: Mapping[str, np.ndarray]) -> float:
    """The share of the best `slate_size` items that `recommend` finds by its index, of many users.

    Args:
      request: inputs of `recommend`, [B, ...] each. Known users replace those in it, if there are.
    """
    k = self.settings["slate_size"]
    count = _USERS_OF_RECALL if self.users is not None else len(request["exclude"])
    inputs = {
      name: np.resize(values, (count, *values.shape[1:])) for name, values in request.items()
    }
    inputs |= {"exclude": np.full((count, 1), ""), "k": np.full(count, k, np.int32)}
    if self.users is not None:
      known = len(next(iter(self.users.values())))
      chosen = np.random.default_rng(0).integers(known, size=count)
      inputs |= {n: np.asarray(v)[chosen] for n, v in self.users.items() if n in self.inputs}
    tensors = {name: tf.constant(values) for name, values in inputs.items()}
    found, best = (
      self.model.signatures[name](
        **{n: tensors[n] for n in self.model.signatures[name].structured_input_signature[1]}
      )["item_id"].numpy()
      for name in ("recommend", "retrieve")
    )
    hits = [len({*a} & {*b} - {b""}) for a, b in zip(found, best, strict=True)]
    return sum(hits) / np.sum(best != b"")

  def order_of(self, items: Sequence[str], name: str) -> np.ndarray | None:
    """The place of each item of a log in this catalogue, [N]; None: the order is the same."""
    order = pd.Index(self.items).get_indexer(pd.Index(items))
    absent = np.asarray(items)[order < 0]
    if len(absent) or len(items) < len(self.items):
      missing = sorted({*self.items} - {*items})
      which, first = (
        (f"{len(absent)} items of {name} are not in the model's catalogue", absent[0])
        if len(absent)
        else (f"{len(missing)} items of the model are not in {name}", missing[0])
      )
      raise InputError(
        f"{which} (first: {str(first)!r}); give the log the items table that the model was trained"
        " with"
      )
    return None if np.array_equal(order, np.arange(len(order))) else order

  def scores(
    self, rows: LogRows, users: FeatureTable, items: Sequence[str]
  ) -> Callable[[np.ndarray], tuple[tf.Tensor, tf.Tensor]]:
    """A function from row numbers, [m], of a log to scores of both stages, [m, N] each.

    `users` are raw features of the users of the log, and `items` the ids of its catalogue.
    """
    context, sequences = self.settings["context"], self.settings.get("sequences", [])
    past = {
      name: dataclasses.replace(rows.histories[name], length=self.settings["sequence_length"])
      for name in sequences
      if name in rows.histories
    }

    def raw(at: np.ndarray) -> dict[str, np.ndarray]:
      features = {
        n: np.asarray(v)[rows.user_index[at]] for n, v in users.items() if n in self.inputs
      }
      features |= {n: np.asarray(rows.context[n])[at] for n in context if n in rows.context}
      for name in sequences:
        features = {n: v for n, v in features.items() if n not in _of_sequence(name)}
        features |= past[name].raw(name, at, items) if name in past else {}
      return features

    if missing := {*self.inputs} - {*raw(np.arange(0))}:
      raise InputError(
        f"the log lacks {', '.join(sorted(missing))}, which the model reads; add columns"
      )

    def scores(at: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
      features = raw(at)
      return self.model.scores(**self._tensors({name: features[name] for name in self.inputs}))

    return scores

  def _tensors(self, features: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
    tensors = {}
    for name, values in features.items():
      dtype = self.inputs[name].dtype if name != TIME else tf.float64
      text = dtype == tf.string
      tensors[name] = tf.constant(values, tf.string) if text else tf.cast(values, dtype)
    return tensors

  def _features(self, frame: pd.DataFrame, by_id: bool) -> dict[str, np.ndarray]:
    """Raw values of all inputs; user features that are not columns come from the known users.

    All users must be known if they are given `by_id` alone.
    """
    user_id = self.settings["user_id"]
    missing = [name for name in self.inputs if name not in frame]
    for sequence in self.settings.get("sequences", []):
      own = [name for name in _of_sequence(sequence) if name in self.inputs]
      absent = [name for name in own if name not in frame]
      if 0 < len(absent) < len(own):
        raise InputError(
          f"recommend: no column {absent[0]!r}; {', '.join(own)} describe the same events: pass all"
          " of them, or none for known users"
        )
    known: dict[str, np.ndarray] = {}
    if (missing or by_id) and self.users is not None and user_id in frame:
      ids = frame[user_id].astype(str)
      known_ids = pd.Index(np.asarray(self.users[user_id], object))
      place = known_ids.get_indexer(ids.to_numpy(object))
      if (place < 0).any():
        raise InputError(
          f"recommend: {(place < 0).sum()} of {len(ids)} users are not known (first:"
          f" {ids[place < 0].iloc[0]!r}); pass a DataFrame with their features:"
          f" {', '.join(self.inputs)}"
        )
      known = {n: np.asarray(self.users[n])[place] for n in missing if n in self.users}
    lacking = [name for name in missing if name not in known]
    if lacking:
      raise InputError(
        f"recommend: the model reads {', '.join(lacking)}; pass a DataFrame with the columns"
        f" {', '.join(dict.fromkeys([user_id, *lacking]))}"
      )
    return {
      name: known[name] if name in known else _column(name, frame[name], spec)
      for name, spec in self.inputs.items()
    }


def _of_sequence(name: str) -> tuple[str, ...]:
  """The inputs that a sequence may have."""
  return name, f"{name}_ages", events_of(name)


def _column(name: str, values: pd.Series, spec: tf.TensorSpec) -> np.ndarray:
  """A column of a DataFrame as an input of the model."""
  rank, text = spec.shape.rank, spec.dtype == tf.string
  if rank == 1 and not text:
    values = pd.to_numeric(values, errors="coerce")
  empty = values.isna() if rank == 1 else values.map(lambda cell: cell is None)
  if empty.any():
    raise InputError(
      f"recommend: column {name!r} has no value in {int(empty.sum())} of {len(values)} rows (first:"
      f" row {int(np.flatnonzero(empty)[0])}); fill them"
    )
  if rank == 1:
    return values.astype(str).to_numpy(object) if text else values.to_numpy(np.float64)
  cells = [cell.split("|") if isinstance(cell, str) else list(cell) for cell in values]
  width = spec.shape[1]
  wrong = [i for i, cell in enumerate(cells) if width is not None and len(cell) != width]
  if wrong:
    raise InputError(
      f"recommend: column {name!r} must hold vectors of {width} numbers; {len(wrong)} of"
      f" {len(cells)} rows do not (first: row {wrong[0]}, {len(cells[wrong[0]])} values)"
    )
  padding = {tf.string: "", tf.int64: -1}.get(spec.dtype, 0.0)
  return _padded(cells, padding, np.dtype(object if text else spec.dtype.as_numpy_dtype))


def _times(frame: pd.DataFrame, newest: float) -> np.ndarray:
  """The times of requests in seconds, [B] float64; without a column, the newest of the log."""
  if TIME not in frame:
    return np.full(len(frame), newest)
  column = pa.chunked_array([pa.array(frame[TIME])])
  times = as_times(column) if are_dates(column) else as_numbers(column)[0]
  valid = np.isfinite(times)
  require(valid, f"recommend: column {TIME!r}", "must hold times", "write dates or seconds", times)
  return times


def _id(value: Any) -> str:
  """An id as text; whole floats are read as integers, which pandas makes of them in a merge."""
  return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _excluded(exclude: Excluded | None, users: np.ndarray) -> np.ndarray:
  """[B, E] item ids, padded with ""; ids outside the catalogue have no effect."""
  if isinstance(exclude, str):
    raise InputError(f"recommend: exclude is the text {exclude!r}; pass a list of items per user")
  if isinstance(exclude, Mapping):
    by_user = {_id(user): items for user, items in exclude.items()}
    given = [by_user.get(_id(user), ()) for user in users]
  else:
    given = [()] * len(users) if exclude is None else list(exclude)
  texts = [items for items in given if isinstance(items, str)]
  if texts:
    raise InputError(f"recommend: exclude holds the text {texts[0]!r} in place of a list of items")
  lists = [[*map(_id, items)] for items in given]
  if len(lists) != len(users):
    raise InputError(
      f"recommend: exclude has {len(lists)} lists for {len(users)} users; pass one for each user,"
      " or a dict from user to items"
    )
  return _padded(lists, "", np.dtype(object))


def _padded(cells: list[list[Any]], padding: Any, dtype: np.dtype) -> np.ndarray:
  width = max(1, max(map(len, cells), default=1))
  padded = [[*cell, *[padding] * (width - len(cell))] for cell in cells]
  return np.array(padded, dtype).reshape(len(cells), width)
