"""A recommender that answers in this process, fitted here or loaded from an export."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from tf_twostage.data.log import BanditLog
from tf_twostage.data.schema import FeatureTable, Schema
from tf_twostage.errors import InputError
from tf_twostage.serving.exporting import EXTRA, latest
from tf_twostage.serving.servable import ServableRecommender

SETTINGS, USERS = "recommender.json", "users.parquet"
_PAIRS_PER_CALL = 2**22

# From row numbers of a log, [m], to scores of the generator and of the ranker, [m, N] each.
ScoresByRow = Callable[[np.ndarray], tuple[tf.Tensor, tf.Tensor]]
Users = pd.DataFrame | Sequence[Any] | str
Excluded = Mapping[Any, Iterable[Any]] | Sequence[Iterable[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
  """The signatures of a servable recommender, and the users that it was fitted on.

  Attributes:
    signatures: by name; see `ServableRecommender.signatures`.
    inputs: user and context features that `recommend` takes, by name.
    user_id: name of the user id, which is an input unless it only names rows.
    context: names of the inputs that belong to the request, not to the user.
    num_items: N.
    users: raw features of the known users, [U, ...] each; None: not known.
    settings: everything else that an export says of itself; JSON-able.
  """

  signatures: Mapping[str, Callable[..., Mapping[str, tf.Tensor]]]
  inputs: Mapping[str, tf.TensorSpec]
  user_id: str
  context: tuple[str, ...]
  num_items: int
  users: FeatureTable | None
  settings: Mapping[str, Any]

  @classmethod
  def of(
    cls,
    servable: ServableRecommender,
    schema: Schema,
    users: FeatureTable | None,
    settings: Mapping[str, Any],
  ) -> Served:
    """A recommender that was fitted in this process."""
    found = servable.signatures()
    specs = found["recommend"][1]
    return cls(
      {name: method for name, (method, _) in found.items()},
      {name: spec for name, spec in specs.items() if name not in ("exclude", "k")},
      schema.user_id.name,
      tuple(feature.name for feature in schema.context),
      servable.num_items,
      users,
      settings,
    )

  @classmethod
  def load(cls, path: pathlib.Path) -> Served:
    """The newest version in a directory of exports, or one version.

    Raises:
      InputError: there is none, or it was not exported by this package.
    """
    version = latest(path)
    file = version / EXTRA / SETTINGS
    if not file.is_file():
      raise InputError(
        f"{version}: no {EXTRA}/{SETTINGS}, so this is no export of this version of tf_twostage;"
        " export the model again"
      )
    settings = json.loads(file.read_text(encoding="utf-8"))
    model = tf.saved_model.load(str(version))
    specs = model.signatures["recommend"].structured_input_signature[1]
    users = version / EXTRA / USERS
    loaded = cls(
      dict(model.signatures),
      {name: spec for name, spec in specs.items() if name not in ("exclude", "k")},
      settings["user_id"],
      tuple(settings["context"]),
      settings["num_items"],
      _read_table(users) if users.is_file() else None,
      settings,
    )
    object.__setattr__(loaded, "_model", model)  # signatures do not keep their variables alive
    return loaded

  def files(self, *, users: bool) -> dict[str, bytes]:
    """What an export needs in `assets.extra` to be loaded again.

    Args:
      users: whether to write the table of users, so that recommendations can be asked for by id.
    """
    settings = {
      **self.settings,
      "user_id": self.user_id,
      "context": self.context,
      "num_items": self.num_items,
    }
    files = {SETTINGS: (json.dumps(settings, indent=1, default=str) + "\n").encode()}
    if users and self.users is not None:
      files[USERS] = _table_bytes(self.users)
    return files

  def recommend(self, users: Users, k: int, exclude: Excluded | None) -> pd.DataFrame:
    """See `TwoStageRecommender.recommend`."""
    if not isinstance(users, pd.DataFrame):
      users = pd.DataFrame({self.user_id: [users] if isinstance(users, str) else list(users)})
    if k < 1:
      raise InputError(f"recommend: k must be at least 1, got {k}")
    frame = users.reset_index(drop=True)
    names = np.asarray(frame.get(self.user_id, users.index))
    features, excluded = self._features(frame), _excluded(exclude, names)
    parts = []
    size = max(1, _PAIRS_PER_CALL // self.num_items)
    for start in range(0, len(frame), size):
      some = slice(start, start + size)
      answer = self._call(
        "recommend",
        {name: values[some] for name, values in features.items()},
        exclude=tf.constant(excluded[some]),
        k=tf.constant(k, tf.int32),
      )
      items = answer["item_id"].numpy().astype(str)
      shown = items != ""
      row, rank = np.nonzero(shown)
      columns: dict[str, Any] = {"user": names[some][row], "rank": rank + 1, "item": items[shown]}
      columns["title"] = np.char.decode(answer["title"].numpy().astype(bytes), "utf-8")[shown]
      columns |= {name: answer[name].numpy()[shown] for name in ("score", "generator_score")}
      parts.append(pd.DataFrame(columns))
    empty = pd.DataFrame(columns=["user", "rank", "item", "title", "score", "generator_score"])
    return pd.concat(parts, ignore_index=True) if parts else empty

  def scores(self, log: BanditLog) -> ScoresByRow:
    """Scores of both stages on a log of the same catalogue, in the log's order of items.

    Raises:
      InputError: the log lacks a feature, or its catalogue is another one.
    """
    rows = log.rows
    raw = {name: (rows.context if name in self.context else log.users) for name in self.inputs}
    missing = [name for name, table in raw.items() if name not in table]
    if missing:
      raise InputError(f"{log.name}: the model reads {', '.join(missing)}; add such columns")
    ids = np.asarray(log.schema.item_id.vocabulary)
    place = tf.lookup.StaticHashTable(
      tf.lookup.KeyValueTensorInitializer(ids, np.arange(len(ids)), tf.string, tf.int64), -1
    )

    def features(at: np.ndarray) -> dict[str, np.ndarray]:
      users = rows.user_index[at]
      return {n: table[n][at if n in self.context else users] for n, table in raw.items()}

    def retrieved(at: np.ndarray) -> Mapping[str, tf.Tensor]:
      return self._call(
        "retrieve",
        {name: values for name, values in features(at).items() if name not in self.context},
        exclude=tf.constant([[""]] * len(at)),
        k=tf.constant(self.num_items, tf.int32),
      )

    def ordered(answer: Mapping[str, tf.Tensor]) -> tf.Tensor:
      scores = np.empty(answer["score"].shape, np.float32)
      np.put_along_axis(scores, place.lookup(answer["item_id"]).numpy(), answer["score"], axis=1)
      return tf.constant(scores)

    check_catalogue(log, retrieved(np.arange(1))["item_id"].numpy()[0].astype(str))

    def scores(at: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
      everything = tf.tile(tf.constant(ids)[tf.newaxis], [len(at), 1])
      ranked = self._call("rank", features(at), candidates=everything)
      return ordered(retrieved(at)), ordered(ranked)

    return scores

  def _call(self, name: str, features: Mapping[str, np.ndarray], **inputs: tf.Tensor):
    tensors = {}
    for column, values in features.items():
      dtype = self.inputs[column].dtype
      text = dtype == tf.string
      tensors[column] = tf.constant(values, tf.string) if text else tf.cast(values, dtype)
    return self.signatures[name](**inputs, **tensors)

  def _features(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Raw values of all inputs; user features that are not columns come from the known users."""
    missing = [name for name in self.inputs if name not in frame]
    known: dict[str, np.ndarray] = {}
    of_users = [name for name in missing if name not in self.context]
    if of_users and self.users is not None and self.user_id in frame:
      ids = frame[self.user_id].astype(str)
      place = pd.Index(np.asarray(self.users[self.user_id]).astype(str)).get_indexer(ids)
      unknown = ids[place < 0]
      if len(unknown):
        raise InputError(
          f"recommend: {len(unknown)} of {len(ids)} users are not known (first:"
          f" {unknown.iloc[0]!r}); pass a DataFrame with their features: {', '.join(self.inputs)}"
        )
      known = {name: np.asarray(self.users[name])[place] for name in of_users}
    lacking = [name for name in missing if name not in known]
    if lacking:
      raise InputError(
        f"recommend: the model reads {', '.join(lacking)}; pass a DataFrame with the columns"
        f" {', '.join(dict.fromkeys([self.user_id, *lacking]))}"
      )
    return {
      name: known[name] if name in known else _column(name, frame[name], spec)
      for name, spec in self.inputs.items()
    }


def check_catalogue(log: BanditLog, item_ids: np.ndarray) -> np.ndarray:
  """For each item of the log, its place in `item_ids`.

  Raises:
    InputError: these are not the same items.
  """
  of_log = pd.Index(log.schema.item_id.vocabulary)
  order = pd.Index(item_ids).get_indexer(of_log)
  for which, absent in (
    (f"items of {log.name} are not in the model's catalogue", of_log[order < 0]),
    (f"items of the model are not in the catalogue of {log.name}", set(item_ids) - set(of_log)),
  ):
    if len(absent):
      raise InputError(
        f"{len(absent)} {which} (first: {min(absent)!r}); give the log the items table that the"
        " model was trained with"
      )
  return order


def _column(name: str, values: pd.Series, spec: tf.TensorSpec) -> np.ndarray:
  """A column of a DataFrame as an input of the model."""
  empty = values.isna() if spec.shape.rank == 1 else values.map(lambda cell: cell is None)
  numbers = values
  if spec.shape.rank == 1 and spec.dtype != tf.string:
    numbers = pd.to_numeric(values, errors="coerce")
    empty = numbers.isna()
  if empty.any():
    raise InputError(
      f"recommend: column {name!r} has no value in {int(empty.sum())} of {len(values)} rows (first:"
      f" row {int(np.flatnonzero(empty)[0])}); fill them"
    )
  if spec.shape.rank == 1:
    if spec.dtype == tf.string:
      return values.astype(str).to_numpy(object)
    return numbers.to_numpy(np.float64)
  cells = [cell.split("|") if isinstance(cell, str) else list(cell) for cell in values]
  width = max(1, max(map(len, cells), default=1))
  padding = {tf.string: "", tf.int64: -1}.get(spec.dtype, 0.0)
  padded = [[*cell, *[padding] * (width - len(cell))] for cell in cells]
  return np.array(padded, object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)


def _excluded(exclude: Excluded | None, users: np.ndarray) -> np.ndarray:
  """[B, E] item ids, padded with ""."""
  if isinstance(exclude, Mapping):
    by_user = {str(user): items for user, items in exclude.items()}
    lists = [[str(item) for item in by_user.get(str(user), ())] for user in users]
  else:
    lists = [[str(item) for item in items] for items in exclude or [[]] * len(users)]
  if len(lists) != len(users):
    raise InputError(
      f"recommend: exclude has {len(lists)} lists for {len(users)} users; pass one for each user,"
      " or a dict from user to items"
    )
  width = max(1, max(map(len, lists), default=1))
  return np.array([[*items, *[""] * (width - len(items))] for items in lists], object).reshape(
    len(lists), width
  )


def _table_bytes(table: FeatureTable) -> bytes:
  """Parquet; an array [U, M] becomes a column of lists."""
  columns = {}
  for name, values in table.items():
    array = np.asarray(values)
    flat = pa.array(array.ravel().tolist() if array.dtype.kind in "OUS" else array.ravel())
    columns[name] = (
      flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    )
  out = io.BytesIO()
  pq.write_table(pa.table(columns), out)
  return out.getvalue()


def _read_table(path: pathlib.Path) -> dict[str, np.ndarray]:
  table = pq.read_table(path)
  found = {}
  for name in table.column_names:
    column = table[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
      values = column.flatten().to_numpy(zero_copy_only=False)
      found[name] = values.reshape(len(column), -1)
    else:
      found[name] = column.to_numpy(zero_copy_only=False)
  return found
