"""A log of one's own with its users and items: the arrays that training and evaluation take."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tf_twostage.data import assemble, frames, splits
from tf_twostage.data.assemble import RawLog
from tf_twostage.data.check import examine
from tf_twostage.data.files.columns import LEAST_EXAMINATION, rule
from tf_twostage.data.log_schema import RESERVED, FeatureColumn, LogSchema
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import FeatureTable, Schema, check_table, fingerprint_arrays
from tf_twostage.data.slates import Slates
from tf_twostage.errors import InputError, require

if TYPE_CHECKING:
  import tensorflow as tf

  from tf_twostage.data.check.report import LogReport
  from tf_twostage.data.policy_table import PolicyTable

# Columns beside those of `LogRows`.
_BESIDE = (
  "time",
  "ranker_score",
  "split_label",
  "policy",
  "policy_propensities",
  "slate",
  "cascade_propensity",
  "examination",
)


@dataclasses.dataclass(frozen=True, eq=False)
class BanditLog:
  """Users, items and what an older policy showed; row i of a table is index i of the log.

  Attributes:
    name: where the log came from, for people.
    schema: the features of users, items and context, with their vocabularies.
    users: raw user features by name, [U] each ([U, max_length] for a bag).
    items: raw item features by name, [N] each.
    titles: what to call an item when showing it, [N] str.
    rows: n rows; their propensity is None where the log has none.
    time: when each row was shown, [n] float64, seconds where the log had dates; or None.
    ranker_score: what the ranker in production gave the row's item, [n] float32, or None.
    split_label: the split that the log assigns to each row, [n] str, or None.
    notes: what a reader should know, such as that rows were left out; sentences.
    estimated_propensities: whether those of the log are an estimate, and not what was logged.
    items_listed: whether the catalogue is a table of items, not just what was logged.
    impressions: whether rows are items that were shown. Else they are what users rated or ordered,
      without what else they could have chosen, and no policy can be evaluated on them.
    policies: names of the logging policies, J of them, if they were logged; else empty.
    policy: the policy that logged each row, [n] int32 index of `policies`, or None.
    policy_propensities: the probability with which each policy shows the row's item, [n, J]
      float32, or None. The propensities of the rows are then balanced: those of the mixture of the
      policies in the shares that they have in these very rows, also after `split` and `select`.
    slate: number of the slate of which each row is a slot, [n] int32, or None; see `slates`.
    cascade_propensity: the probability of each row's slot and all above it, as they were shown, [n]
      float32 in (0, 1], or None.
    examination: the probability that the user examined each row's slot, [n] float32 in [1e-6, 1],
      or None.

  Raises:
    InputError: tables, log and columns do not fit each other.
  """

  name: str
  schema: Schema
  users: FeatureTable
  items: FeatureTable
  titles: np.ndarray
  rows: LogRows
  time: np.ndarray | None = None
  ranker_score: np.ndarray | None = None
  split_label: np.ndarray | None = None
  notes: tuple[str, ...] = ()
  estimated_propensities: bool = False
  items_listed: bool = True
  impressions: bool = True
  policies: tuple[str, ...] = ()
  policy: np.ndarray | None = None
  policy_propensities: np.ndarray | None = None
  slate: np.ndarray | None = None
  cascade_propensity: np.ndarray | None = None
  examination: np.ndarray | None = None

  def __post_init__(self):
    if not len(self.rows):
      raise InputError(f"{self.name}: the log has no rows; log some traffic first")
    sizes = {
      "user features": (
        check_table(self.schema.user_table, self.users, "user features"),
        self.num_users,
      ),
      "item features": (check_table(self.schema.item, self.items, "item features"), self.num_items),
      "titles": (len(self.titles), self.num_items),
      "user_index": (max(self.rows.user_index.max() + 1, self.num_users), self.num_users),
      "action": (max(self.rows.action.max() + 1, self.num_items), self.num_items),
    }
    sizes |= {name: (len(values), len(self.rows)) for name, values in self._columns().items()}
    wrong = {name: size for name, size in sizes.items() if size[0] != size[1]}
    absent = [f.name for f in self.schema.sequences if f.name not in self.rows.histories]
    if absent:
      raise InputError(f"{self.name}: rows lack the histories {', '.join(absent)} of the schema")
    if wrong:
      raise InputError(f"{self.name}: found and expected sizes differ: {wrong}")
    if self.policy is not None and self.policy_propensities is not None:
      shares = np.bincount(self.policy, minlength=len(self.policies)) / len(self)
      balanced = (self.policy_propensities @ shares).astype(np.float32)
      object.__setattr__(self, "rows", dataclasses.replace(self.rows, propensity=balanced))

  def _columns(self) -> dict[str, np.ndarray]:
    """The columns beside the log's own, [n] each."""
    return {name: values for name in _BESIDE if (values := getattr(self, name)) is not None}

  @classmethod
  def from_pandas(
    cls,
    frame: pd.DataFrame,
    *,
    user: str | None,
    item: str,
    reward: str | Mapping[str, float] | None,
    propensity: str | Mapping[str, str] | None = None,
    policy: str | None = None,
    slate: str | Sequence[str] | None = None,
    cascade_propensity: str | None = None,
    examination: str | None = None,
    time: str | None = None,
    position: str | None = None,
    first_position: int = 0,
    ranker_score: str | None = None,
    split: str | None = None,
    candidates: str | None = None,
    available_from: str | None = None,
    available_to: str | None = None,
    items: pd.DataFrame | None = None,
    users: pd.DataFrame | None = None,
    item_features: Mapping[str, str] | None = None,
    user_features: Mapping[str, str] | None = None,
    sequences: Mapping[str, str | Mapping[str, str]] | None = None,
    context: Sequence[str] = (),
    title: str | None = None,
    name: str = "log",
    on_bad_rows: str = "fail",
  ) -> BanditLog:
    """A log in a DataFrame, one row for each item that was shown.

    Features that are left out are inferred from the frames of items and users, see `kinds.infer`;
    notes say which columns are not read.

    Args:
      frame: n rows; columns that are not named below are ignored.
      user: column of user ids, text or numbers. None: distinct combinations of the user features
        are the users.
      item: column of the ids of the items shown, text or numbers.
      reward: column of rewards, >= 0; or several columns -> weights, such as {"click": 1,
        "purchase": 5}, whose weighted sum is the reward. None: rows are orders or the like, not
        impressions, and each has the reward 1.
      propensity: column of the probability of showing the row's item, in (0, 1]; in a slate, of
        showing it in the row's slot. None: they are estimated before training. To balance several
        policies: the name of each policy -> the column of its probability of the row's item, in
        [0, 1], also in rows that others logged.
      policy: column of the name of the policy that logged the row.
      slate: column of the id of the slate of which the row is a slot; several columns, such as
        session and time, are an id together. None: rows are shown one by one.
      cascade_propensity: column of the probability of the row's slot and all above it, as they were
        shown, in (0, 1].
      examination: column of the probability that the user examined the row's slot, in [1e-6, 1].
      time: column of dates, ISO 8601 text or numbers.
      position: column of slots; slates need it.
      first_position: the position of the first slot, 0 or 1.
      ranker_score: column of the production ranker's scores.
      split: column of "train", "validation" or "test".
      candidates: column of lists of the items that could be shown in the row. None: all could.
      available_from, available_to: columns of `items`: the time from which an item could be shown,
        and the first at which it no longer could; missing: always. They need `time`.
      items: a row for each item of the catalogue, with a column called as `item`. None: the
        catalogue is the items that were logged.
      users: a row for each user, with a column called as `user`.
      item_features: column of `items` -> "categorical", "numeric" or "bag". None: inferred.
      user_features: column of `users`, or of `frame` without `users`, -> kind. None: inferred from
        `users`, none without it.
      sequences: name of a user feature -> the column of `frame` with lists of items, oldest first;
        or `item`: the items of the user's earlier rewarded rows, which needs `time`. With the age
        of each: {"kind": "timed_sequence", "column": item}. With the kind of each: "events", the
        column of kinds, lists or one a row; rows without a kind are no events, all others are.
      context: numeric columns of `frame` that models may read.
      title: column of `items` with display names; by default "title" if it exists, else the ids.
      name: what messages call the log.
      on_bad_rows: "fail", or "skip" to leave bad rows out and note it.

    Raises:
      InputError: a column is missing, or no row is left.
      BadRowsError: rows are bad; names each kind of fault, its first row and the remedy.
    """
    for side, table in (("the log", frame), ("items", items), ("users", users)):
      if not (isinstance(table, pd.DataFrame) or (table is None and side != "the log")):
        raise InputError(f"{name}: {side} must be a DataFrame, got {type(table).__name__}")
    for side, kinds in (("item_features", item_features), ("user_features", user_features)):
      if not isinstance(kinds, Mapping | None):
        raise InputError(f'{name}: {side} must be a dict such as {{"genre": "categorical"}}')
    if "sequence" in (user_features or {}).values():
      raise InputError(f"{name}: a sequence differs by row: pass sequences={{name: column}} for it")
    if isinstance(context, str | Mapping):
      raise InputError(
        f"{name}: context must be a list of numeric columns, got {context!r}; encode other columns"
        " as numbers, or make them user features"
      )
    several = [*propensity.values()] if isinstance(propensity, Mapping) else [propensity]
    several += [*reward] if isinstance(reward, Mapping) else [reward]
    several += [slate] if isinstance(slate, str | None) else [*slate]
    of_slates = (cascade_propensity, examination, position)
    roles = (user, item, policy, time, ranker_score, split, title, *of_slates)
    for column in (*roles, *several):
      if not isinstance(column, str | None):
        raise InputError(
          f"{name}: column names must be text, got {column!r}; rename the columns:"
          " frame.rename(columns=str)"
        )
    if title is None and items is not None and "title" in items:
      title = "title"
    others = {"title": title, "available_from": available_from, "available_to": available_to}
    item_table, of_items, notes = frames.table(items, item, item_features, "item", others=others)
    taken = [feature.name for feature in of_items]
    if users is None:
      user_table, of_users = None, frames.features(user_features or {}, frame, "user")[0]
    else:
      user_table, of_users, unread = frames.table(users, user, user_features, "user", taken=taken)
      notes += unread
    of_users += frames.sequences(sequences or {}, frame)
    schema = LogSchema(
      user_id=user,
      item_id=item,
      slate_id=slate if isinstance(slate, str | None) else tuple(slate),
      policy=policy,
      propensity=propensity,
      cascade_propensity=cascade_propensity,
      examination=examination,
      reward=reward,
      position=position,
      first_position=first_position,
      time=time,
      ranker_score=ranker_score,
      split=split,
      candidates=candidates,
      available_from=available_from,
      available_to=available_to,
      title=title,
      user_features=of_users,
      item_features=of_items,
      context_features=tuple(
        FeatureColumn(f"context_{column}" if column in RESERVED else column, "numeric", column)
        for column in context
      ),
    )
    ids = [column for column in (user, item, policy) if column is not None]
    ids += schema.slate_columns.values()
    raw = assemble.read(
      frames.as_files(frame, schema.columns(user_features=users is None), name, ids),
      item_table,
      user_table,
      schema,
      on_bad_rows=on_bad_rows,
    )
    log = cls.from_raw(raw)
    return dataclasses.replace(log, notes=(*log.notes, *notes))

  @classmethod
  def from_dataset(cls, dataset: tf.data.Dataset, *, item: str, **columns: Any) -> BanditLog:
    """A log in a finite `tf.data.Dataset` of dicts, single rows or batches.

    Args:
      dataset: yields dicts of the columns; vectors of text, ragged or padded with "", are bags.
      item: as the others, see `from_pandas`.
      columns: the other arguments of `from_pandas`.

    Raises:
      InputError: as `from_pandas`; or the dataset never ends.
    """
    return cls.from_pandas(frames.from_dataset(dataset, item), item=item, **columns)

  @classmethod
  def from_files(
    cls,
    log: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    items: str | os.PathLike | None = None,
    users: str | os.PathLike | None = None,
    schema: str | os.PathLike | LogSchema = "native",
    on_bad_rows: str = "fail",
  ) -> BanditLog:
    """A log in CSV, Parquet or TFRecord files.

    Args:
      log: file, directory, pattern, or several of them.
      items: file with a row for each item. None: the catalogue is the items that were logged.
      users: file with a row for each user. None: user features are columns of the log.
      schema: a `LogSchema`, its file, or the name of a preset.
      on_bad_rows: "fail", or "skip" to leave bad rows out and note it.

    Raises:
      InputError: files cannot be read, columns are missing, or nothing is left.
      BadRowsError: rows are bad; names each kind of fault, its first row and the remedy.
    """
    return cls.from_raw(assemble.read(log, items, users, schema, on_bad_rows=on_bad_rows))

  @classmethod
  def from_bandit_feedback(
    cls, feedback: Mapping[str, Any], name: str = "bandit feedback"
  ) -> BanditLog:
    """The `bandit_feedback` dict of Open Bandit Pipeline, in memory.

    Distinct rows of `context` are the users, and its columns their features. A one-hot
    `action_context` is left out, since it only repeats the item's id.

    Args:
      feedback: `n_rounds`, `n_actions`, `action` [n], `reward` [n] and `context` [n, d]; `pscore`
        [n], `position` [n] and `action_context` [N, d'] may be None or absent.
      name: what messages call the log.

    Raises:
      InputError: a key is missing, or a value has the wrong shape, type or range.
    """
    log = cls.from_pandas(**frames.from_feedback(feedback, name), name=name)
    # A user is a row of numbers: towers read these, so that a later user needs no known id.
    _, *features = log.schema.user
    user = (dataclasses.replace(log.schema.user_id, embedded=False), *features)
    return dataclasses.replace(log, schema=dataclasses.replace(log.schema, user=user))

  @classmethod
  def from_raw(cls, raw: RawLog, chosen: np.ndarray | slice = slice(None)) -> BanditLog:
    """The users and items of a log that was read, with some of its rows: a mask or a slice."""
    beside: dict[str, Any] = {n: raw.columns[n][chosen] for n in _BESIDE if n in raw.columns}
    return cls(rows=raw.rows(chosen), **raw.shared, **beside)

  def check(self, policy: PolicyTable | str | os.PathLike | None = None) -> LogReport:
    """What the log is worth: propensities, coverage of other policies, gaps and leaks.

    Args:
      policy: another policy to report the overlap with, or its file.
    """
    return examine.check(self, policy)

  def split(
    self, method: str = "auto", *, validation: float = 0.15, test: float = 0.15, seed: int = 0
  ) -> tuple[BanditLog, BanditLog, BanditLog]:
    """Training, validation and test rows; all three share the users and items.

    The rows of a slate stay together, unless a split column parts them.

    Args:
      method: "time" (the latest rows validate and test), "user" (users at random, with all their
        rows), "random" (rows at random), "column" (by `split_label`), or "auto": the first of
        column, time and random that the log allows.
      validation: share of the rows (by user: of users) that validates; of "column", whether
        validation rows are needed.
      test: share that tests, likewise.
      seed: fixes random draws.

    Raises:
      InputError: the log lacks what the method needs, or a part would be empty.
    """
    masks = self.masks(method, validation=validation, test=test, seed=seed)
    if empty := [part for part, mask in masks.items() if not mask.any()]:
      raise InputError(f"{self.name}: a log cannot be empty; raise the share of {empty[0]} rows")
    train, valid, tested = (self.select(mask) for mask in masks.values())
    return train, valid, tested

  def masks(self, method: str, **settings: Any) -> dict[str, np.ndarray]:
    """The rows that `split` chooses for "train", "validation" and "test", [n] bool each."""
    columns: dict[str, Any] = {
      "user_index": self.rows.user_index,
      "time": self.time,
      "labels": self.split_label,
      "slate": self.slate,
    }
    return splits.split(method, **columns, **settings)

  def __len__(self) -> int:
    return len(self.rows)

  def __repr__(self) -> str:
    return (
      f"BanditLog({self.name}: {len(self)} rows, {self.num_users} users, {self.num_items} items)"
    )

  def _repr_html_(self) -> str:
    sides = (("users", self.schema.user), ("items", self.schema.item), ("row", self.schema.context))
    features = "".join(
      f"<li>{side}: {', '.join(f'{f.name} ({type(f).__name__})' for f in found)}</li>"
      for side, found in sides
      if found
    )
    sizes = f"{len(self):,} rows, {self.num_users:,} users, {self.num_items:,} items"
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
    return f"<b>{html.escape(self.name)}</b>: {sizes}<ul>{features}{notes}</ul>"

  @property
  def num_users(self) -> int:
    return self.schema.num_users

  @property
  def num_items(self) -> int:
    return self.schema.num_items

  @property
  def has_propensities(self) -> bool:
    return self.rows.propensity is not None

  def select(self, rows: np.ndarray | slice) -> BanditLog:
    """The same users and items with some rows of the log: a mask [n], indices, or a slice.

    Raises:
      InputError: there are no such rows, or none is left.
    """
    try:
      chosen = self.rows.select(rows)
    except IndexError as error:
      raise InputError(
        f"{self.name}: no such rows ({error}); select takes a mask of the {len(self)} rows, indices"
        " of rows, or a slice"
      ) from error
    columns: dict[str, Any] = {name: values[rows] for name, values in self._columns().items()}
    return dataclasses.replace(self, rows=chosen, **columns)

  def with_propensities(self, propensity: np.ndarray) -> BanditLog:
    """The same data with these propensities, [n] in (0, 1], which are an estimate."""
    log = dataclasses.replace(self.rows, propensity=propensity)
    one = dataclasses.replace(self, policy_propensities=None)
    return dataclasses.replace(one, rows=log, estimated_propensities=True)

  def with_sequence_length(self, length: int) -> BanditLog:
    """The same data with the last `length` items of each history."""
    cut = {n: dataclasses.replace(h, length=length) for n, h in self.rows.histories.items()}
    return dataclasses.replace(self, rows=dataclasses.replace(self.rows, histories=cut))

  def users_now(self) -> FeatureTable:
    """Raw user features after the last row of the log, [U] each: with what users did by then."""
    ids, everyone = self.schema.item_id.vocabulary, np.arange(self.num_users)
    found = self.rows.histories.items()
    raw = (history.of_users().raw(name, everyone, ids) for name, history in found)
    return dict(self.users) | {name: values for part in raw for name, values in part.items()}

  def slates(self) -> Slates:
    """The rows by slate and slot.

    Raises:
      InputError: the log has no slates, two rows share a slot, or a slate has several users.
    """
    if self.slate is None or self.rows.position is None:
      raise InputError(
        f"{self.name}: the log has no slates; name the columns of their ids and positions, as"
        " `slate_id` and `position` in a schema, or `slate` and `position` in from_pandas"
      )
    return Slates.of_rows(self.slate, self.rows.position, self.rows.user_index, self.name)

  def with_examination(self, curve: np.ndarray) -> BanditLog:
    """The same data, whose slots are examined with the probabilities [L], up to a factor.

    The largest counts as 1. A slot with NaN counts as the one that is examined least.

    Raises:
      InputError: the log has no positions, or positions beyond the curve; a value is below a
        millionth of the largest.
    """
    curve, position = np.asarray(curve, np.float32), self.rows.position
    if position is None or position.max() >= len(curve):
      found = "no positions" if position is None else f"positions up to {position.max()}"
      raise InputError(f"{self.name}: the log has {found}, and examination {len(curve)} slots")
    of_slot = np.nan_to_num(curve / np.nanmax(curve), nan=np.nanmin(curve) / np.nanmax(curve))
    remedy = "log more, or choose another method of estimating it"
    limit = f"must be at least {LEAST_EXAMINATION:g} of the largest"
    require(
      of_slot >= LEAST_EXAMINATION, f"{self.name}: examination", limit, remedy, curve, unit="slot"
    )
    return dataclasses.replace(self, examination=of_slot[position])

  def examined(self) -> LogRows:
    """The rows with the rewards that they would have if every slot were examined, on average.

    These are rewards divided by `examination`, if the log has it.
    """
    if self.examination is None:
      return self.rows
    reward, wanted = self.rows.reward / self.examination, rule("reward")
    require(
      wanted.valid(reward),
      f"{self.name}: reward divided by examination",
      wanted.text,
      "raise the examination, or give rewards another unit",
      reward,
    )
    return dataclasses.replace(self.rows, reward=reward)

  def slot_examination(self) -> tuple[float, ...] | None:
    """The mean examination of the rows of each slot, relative to the first; None: not known."""
    if self.examination is None or self.rows.position is None:
      return None
    rows = np.bincount(self.rows.position)
    sums = np.bincount(self.rows.position, self.examination)
    means = np.divide(sums, rows, out=np.zeros(len(rows)), where=rows > 0)
    return tuple((means / means[0]).tolist()) if means[0] > 0 else None

  def fingerprint(self) -> str:
    """SHA-256 of the schema and of every array, as 64 hex digits."""
    arrays = {f"user.{k}": v for k, v in self.users.items()}
    arrays |= {f"item.{k}": v for k, v in self.items.items()}
    arrays |= {f"context.{k}": v for k, v in self.rows.context.items()}
    for name, history in self.rows.histories.items():
      parts = {field.name: getattr(history, field.name) for field in dataclasses.fields(history)}
      arrays |= {f"history.{name}.{n}": np.array(v) for n, v in parts.items() if v is not None}
    arrays |= {"titles": self.titles, **self.rows.columns(), **self._columns()}
    arrays |= self.rows.catalogues.arrays() if self.rows.catalogues else {}
    return fingerprint_arrays(self.schema.to_json(), arrays)
