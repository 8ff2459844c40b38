"""The columns of a log and their roles: a dataclass, and the YAML or JSON file that holds it.

The defaults are the native names. docs/bandit_log.md describes the file.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import json
import os
import pathlib
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from tf_twostage.data.schema import events_of
from tf_twostage.errors import InputError

KINDS = ("categorical", "numeric", "bag", "embedding", "sequence", "timed_sequence")
_SEQUENCES = ("sequence", "timed_sequence")
SIDES = ("user_features", "item_features", "context_features")
# Names in a native log. Features cannot have them, or two columns would share a name.
ROLES = (
  "user_id",
  "item_id",
  "slate_id",
  "policy",
  "propensity",
  "cascade_propensity",
  "examination",
  "reward",
  "position",
  "time",
  "ranker_score",
  "split",
  "candidates",
)
AVAILABLE = ("available_from", "available_to")  # of an items file
RESERVED = {*ROLES, *AVAILABLE, "user_index", "action", "title"}
_DEEPEST = 8  # mappings within mappings; a schema needs three
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built


def propensity_of(policy: str) -> str:
  """The native name of the propensities of one of several policies; no feature can have it."""
  return f"propensity of {policy}"


def reward_of(column: str) -> str:
  """The native name of one of several columns of rewards."""
  return f"reward of {column}"


def slate_part(column: str) -> str:
  """The native name of one of several columns that together make the ids of slates."""
  return f"slate_id of {column}"


def repeated(names: Iterable[str]) -> list[str]:
  """The names that occur more than once, sorted."""
  return sorted(name for name, count in collections.Counter(names).items() if count > 1)


@dataclasses.dataclass(frozen=True)
class FeatureColumn:
  """A column that a tower reads.

  Attributes:
    name: the feature's name in models and requests.
    kind: "categorical" (one string), "numeric", "bag" (several strings in one cell), "embedding"
      (a list of numbers, as many in each row), or, of users, "sequence" (items, oldest first) or
      "timed_sequence" (with the age of each event).
    column: its column; by default its name. The vectors of a users or items file may also be in a
      NumPy file beside it, NAME.npy, a row for each of its rows. A sequence is a column of the log:
      lists of items, or the column of the item itself, of whose earlier rewarded rows it is made.
    separator: separates values that are text in one cell.
    events: of a sequence, the column of the kind of each event, such as view or purchase: lists as
      long as those of the items, or one kind a row, where the sequence is made of rows. Rows with
      an empty cell are then no events, and all others are, rewarded or not.
  """

  name: str
  kind: str
  column: str = ""
  separator: str = "|"
  events: str = ""

  def __post_init__(self):
    object.__setattr__(self, "column", self.column or self.name)
    if self.kind not in KINDS:
      raise InputError(
        f"feature {self.name!r}: unknown kind {_shown(self.kind)}; choose one of {', '.join(KINDS)}"
      )
    if self.name in RESERVED:
      raise InputError(
        f"feature {self.name!r}: the name is taken by the log's own columns; give the feature"
        f" another name and say `column: {self.column}`"
      )
    if not self.separator:
      raise InputError(f"feature {self.name!r}: separator is empty; name the text between values")
    if self.events and self.kind not in _SEQUENCES:
      raise InputError(
        f"feature {self.name!r}: only a sequence has events, and its kind is {self.kind}; leave"
        " `events` out"
      )


@dataclasses.dataclass(frozen=True)
class LogSchema:
  """The columns of a log by their roles.

  Attributes:
    user_id: id of the user. None: distinct combinations of the user features are the users.
    item_id: id of the item that was shown.
    slate_id: id of the slate, of which a row is one slot; several columns are an id together. None:
      rows are shown one by one.
    policy: which policy logged the row. None: not logged, or a log of one policy.
    propensity: the probability of showing the row's item, in a slate: in the row's slot. None: not
      logged. To balance several policies: the column of each policy's probability, by the policy's
      name.
    cascade_propensity: the probability of this slot and all above it, as they were shown.
    examination: the probability that the user examined the row's slot.
    reward: the reward, >= 0. Several columns: the weight of each, by the column's name; the reward
      is their weighted sum. None: rows are orders or the like, each with a reward of 1, and not
      impressions.
    position: the draw or slot. The native column `position` may be missing, except in slates.
    first_position: the position of the first slot, 0 or 1; positions in memory count from 0.
    time: numbers or ISO 8601 text. None: not logged, as for the next two.
    ranker_score: score of the ranker in production.
    split: train, validation or test.
    candidates: the ids of all items that could be shown in the row, lists or text separated by "|".
      None: the whole catalogue could.
    available_from, available_to: columns of the items file: the time from which an item could be
      shown, and the first at which it no longer could; blank: always. They need `time`.
    user_key: the id's column in a users file; by default as in the log.
    item_key: the id's column in an items file; by default as in the log.
    title: the column of the items file with display names; by default the item id.
    user_features: columns of the users file, or of the log where there is none. Sequences are
      columns of the log.
    item_features: columns of the items file.
    context_features: numeric columns of the log, one value a row. The time column may be one.
  """

  user_id: str | None = "user_id"
  item_id: str = "item_id"
  slate_id: str | tuple[str, ...] | None = None
  policy: str | None = None
  propensity: str | Mapping[str, str] | None = "propensity"
  cascade_propensity: str | None = None
  examination: str | None = None
  reward: str | Mapping[str, float] | None = "reward"
  position: str | None = "position"
  first_position: int = 0
  time: str | None = None
  ranker_score: str | None = None
  split: str | None = None
  candidates: str | None = None
  available_from: str | None = None
  available_to: str | None = None
  user_key: str | None = None
  item_key: str | None = None
  title: str | None = None
  user_features: tuple[FeatureColumn, ...] = ()
  item_features: tuple[FeatureColumn, ...] = ()
  context_features: tuple[FeatureColumn, ...] = ()

  def __post_init__(self):
    for key, role in (("user_key", "user_id"), ("item_key", "item_id")):
      object.__setattr__(self, key, getattr(self, key) or getattr(self, role))
    for role in ("item_id", "reward"):
      if not getattr(self, role) and (role, self.reward) != ("reward", None):
        raise InputError(f"{role}: every log needs it; name its column")
    if self.user_id is None and not self.user_features:
      raise InputError(
        "user_id: null means that combinations of user features are the users; list user_features,"
        " or name the column of the user ids"
      )
    self._check_policies()
    self._check_slates()
    self._check_rewards()
    if self.intervals and not self.time:
      raise InputError(
        f"{next(iter(self.intervals))}: whether a row could show an item depends on its time; name"
        " the column as `time`"
      )
    twice = repeated(self._role_columns().values())
    if twice:
      raise InputError(f"column {twice[0]!r} has two roles; give each role its own column")
    features = [f for side in SIDES for f in getattr(self, side)]
    twice = repeated(f.name for f in (*features, *self.event_columns))
    if twice:
      raise InputError(
        f"feature {twice[0]!r} is listed twice; names must differ, `column:` may repeat"
      )
    for feature in self.context_features:
      if feature.kind != "numeric":
        raise InputError(
          f"context_features: {feature.name!r} is {feature.kind}; context must be numeric: encode"
          " it as numbers, or make it a user feature"
        )
    self._check_sequences()

  @property
  def sequences(self) -> tuple[FeatureColumn, ...]:
    """The user features that are what a user did before each row."""
    return tuple(f for f in self.user_features if f.kind in _SEQUENCES)

  @property
  def event_columns(self) -> tuple[FeatureColumn, ...]:
    """The kinds of the events of sequences: columns of lists, or of one kind a row."""
    return tuple(
      FeatureColumn(events_of(f.name), self._cells(f), f.events, f.separator)
      for f in self.sequences
      if f.events
    )

  def _cells(self, sequence: FeatureColumn) -> str:
    return "categorical" if sequence.column == self.item_id else "bag"

  @property
  def policies(self) -> tuple[str, ...]:
    """The names of the logging policies, if there are several."""
    return tuple(self.propensity) if isinstance(self.propensity, Mapping) else ()

  @property
  def intervals(self) -> dict[str, str]:
    """Native name -> column of the items file, of the times at which items come and go."""
    return {name: column for name in AVAILABLE if (column := getattr(self, name))}

  @property
  def rewards(self) -> dict[str, float]:
    """Column -> weight, of all columns that the reward is made of."""
    if isinstance(self.reward, Mapping):
      return dict(self.reward)
    return {} if self.reward is None else {self.reward: 1.0}

  def _check_policies(self) -> None:
    if not isinstance(self.propensity, Mapping):
      return
    if not self.policy:
      raise InputError(
        "propensity: a log with `propensity: {policy: COLUMN, ...}`, each policy's probability of"
        " the row's item, needs `policy: COLUMN`, which policy logged a row"
      )
    odd = [word for pair in self.propensity.items() for word in pair if not _is_name(word)]
    if odd:
      raise InputError(
        f"propensity: names of policies and columns must be text, got {_shown(odd[0])}; quote it"
      )
    if len(self.propensity) < 2:
      raise InputError(
        "propensity: a mapping is for several policies; with one, name its column and leave"
        " `policy` out"
      )

  def _check_slates(self) -> None:
    if isinstance(self.slate_id, list | tuple):
      odd = [name for name in self.slate_id if not _is_name(name)]
      if odd or len(self.slate_id) < 2 or repeated(self.slate_id):
        raise InputError(
          f"slate_id: expected a column, or several different ones in a list, got"
          f" {_shown(list(self.slate_id))}"
        )
      object.__setattr__(self, "slate_id", tuple(self.slate_id))
    if self.slate_id and not self.position:
      raise InputError("slate_id: slates need the slot of each row; name its column as `position`")
    if self.cascade_propensity and not (self.slate_id and self.propensity):
      raise InputError(
        "cascade_propensity: it belongs to slates whose propensities are logged; name their columns"
        " as `slate_id` and `propensity`, or leave it out"
      )
    if self.first_position not in (0, 1) or isinstance(self.first_position, bool):
      raise InputError(
        f"first_position: expected 0 or 1, got {_shown(self.first_position)}; write the position of"
        " the first slot"
      )
    if self.first_position and not self.position:
      raise InputError("first_position: it needs positions; name their column as `position`")
    if self.examination and not self.position:
      raise InputError("examination: it belongs to a slot; name its column as `position`")

  def _check_sequences(self) -> None:
    for feature in self.item_features:
      if feature.kind in _SEQUENCES:
        raise InputError(
          f"item_features: {feature.name!r} is a sequence, which users have; make it a bag, or list"
          " it among user_features"
        )
    for feature in self.sequences:
      if feature.kind != "sequence" and feature.column != self.item_id:
        raise InputError(
          f"user_features: {feature.name!r} is a {feature.kind}, which earlier rows alone make;"
          f" say `column: {self.item_id}`, or make it a sequence"
        )
      if feature.column == self.item_id and not (self.time and self.user_id):
        raise InputError(
          f"user_features: {feature.name!r} is made of earlier rows of a user; name the columns of"
          " `time` and `user_id`, or give it a column of lists"
        )

  def _check_rewards(self) -> None:
    if not isinstance(self.reward, Mapping):
      return
    odd = [f"{c!r}: {w!r}" for c, w in self.reward.items() if not (_is_name(c) and _is_weight(w))]
    if odd:
      raise InputError(
        f"reward: {odd[0]}; write `column: weight` lines, with weights from 1e-15 to 1e15, such as"
        " `click: 1`"
      )

  def _role_columns(self) -> dict[str, str]:
    """Native name -> name in the file, of columns that are no features."""
    roles = {role: c for role in ROLES if (c := getattr(self, role)) and isinstance(c, str)}
    if isinstance(self.propensity, Mapping):
      roles |= {propensity_of(policy): column for policy, column in self.propensity.items()}
    if isinstance(self.reward, Mapping):
      roles |= {reward_of(column): column for column in self.reward}
    return roles

  @property
  def slate_columns(self) -> dict[str, str]:
    """Native name -> name in the file, of the columns that make the ids of slates."""
    if isinstance(self.slate_id, tuple):
      return {slate_part(column): column for column in self.slate_id}
    return {"slate_id": self.slate_id} if self.slate_id else {}

  def columns(self, *, user_features: bool = True) -> dict[str, str]:
    """The columns to read of the log: native name -> name in the file."""
    roles = self._role_columns()
    sides = (self.user_features if user_features else self.sequences) + self.context_features
    sides += self.event_columns
    made = [feature for feature in self.sequences if feature.column == self.item_id]
    features = {feature.name: feature.column for feature in sides if feature not in made}
    return roles | self.slate_columns | features

  def native(self, *, user_features: bool = True) -> LogSchema:
    """The schema of the same log once it is written with native names; see `columns`."""
    columns = self.columns(user_features=user_features)
    named: dict[str, Any] = {role: role for role in ROLES if role in columns}
    named |= {"reward": "reward", "first_position": 0}
    named |= {"slate_id": "slate_id"} if self.slate_id else {}
    made = {f.name: "item_id" for f in self.sequences}  # of the log, unless they are in columns
    if self.policies:
      named["propensity"] = {policy: propensity_of(policy) for policy in self.policies}
    sides: dict[str, Any] = {
      side: tuple(
        dataclasses.replace(
          f,
          column=f.name if f.name in columns else made.get(f.name, f.column),
          events=events_of(f.name) if f.events else "",
        )
        for f in getattr(self, side)
      )
      for side in SIDES
    }
    return dataclasses.replace(self, **named, **sides)

  @classmethod
  def from_file(cls, path: str | os.PathLike) -> LogSchema:
    """Reads a schema from a `.json` file, or as YAML from any other.

    Raises:
      InputError: no such file, not YAML or JSON, an unknown key or kind, a value that does not
        fit. The message names the file, the key, and what to write instead.
    """
    path = pathlib.Path(path)
    try:
      text = path.read_text(encoding="utf-8-sig")
      content = json.loads(text) if path.suffix == ".json" else _from_yaml(text)
    except OSError as error:
      raise InputError(
        f"{path}: the schema cannot be read ({error.strerror}); python -m launch.infer_schema"
        " drafts one"
      ) from None
    except Exception as error:  # PyYAML fails in many ways where a tag such as !!bool is wrong
      reason = " ".join(f"{error or type(error).__name__}".split())[:300]
      raise InputError(
        f"{path}: not a schema in {'JSON' if path.suffix == '.json' else 'YAML'} ({reason}); write"
        " `role: column` lines, or start from python -m launch.infer_schema"
      ) from None
    try:
      return cls.from_dict({} if content is None else content)
    except InputError as error:
      raise InputError(f"{path}: {error}") from None

  @classmethod
  def from_dict(cls, content: Any) -> LogSchema:
    """The schema of a file's content."""
    if not isinstance(content, Mapping):
      raise InputError(
        f"holds {type(content).__name__}, not keys with values; write `role: column` lines"
      )
    known = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for key, value in content.items():
      if key not in known:
        raise InputError(
          f"unknown key {_shown(key)};{_similar(key, known)} known are {', '.join(known)}"
        )
      if key in SIDES:
        values[key] = tuple(_features(key, value))
      elif (
        value is None
        or _is_name(value)
        or (key in ("propensity", "reward") and isinstance(value, Mapping))
        or (key == "slate_id" and isinstance(value, list))
        or key == "first_position"
      ):
        values[key] = value
      else:
        raise InputError(
          f"{key}: expected the name of a column, got {_shown(value)}; quote names that are not"
          " text"
        )
    return cls(**values)

  def to_dict(self) -> dict[str, Any]:
    """The input of `from_dict`, with roles at their defaults, without optional roles not logged."""
    content: dict[str, Any] = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name in SIDES:
        if value:
          content[field.name] = {feature.name: _spec(feature) for feature in value}
      elif field.name.endswith("_key") and value == getattr(
        self, field.name.replace("_key", "_id")
      ):
        continue
      elif field.name == "first_position":
        content |= {"first_position": value} if value else {}
      elif value is not None or field.default is not None:
        value = dict(value) if isinstance(value, Mapping) else value
        content[field.name] = list(value) if isinstance(value, tuple) else value
    return content

  def to_file(self, path: str | os.PathLike) -> None:
    """Writes JSON to a `.json` file, YAML to any other."""
    path = pathlib.Path(path)
    if path.suffix == ".json":
      text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
    else:
      text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


PRESETS = {
  "native": LogSchema(),
  # The Open Bandit Dataset: `all.csv` with `item_context.csv` as its items file.
  "open_bandit": LogSchema(
    user_id=None,
    propensity="propensity_score",
    reward="click",
    time="timestamp",
    user_features=tuple(FeatureColumn(f"user_feature_{i}", "categorical") for i in range(4)),
    item_features=tuple(
      FeatureColumn(f"item_feature_{i}", "categorical" if i else "numeric") for i in range(4)
    ),
  ),
}


def load_schema(schema: str | os.PathLike | LogSchema) -> LogSchema:
  """Returns a schema, that of a file, or, if there is no such file, the preset of that name."""
  if isinstance(schema, LogSchema):
    return schema
  if str(schema) in PRESETS and not os.path.exists(schema):
    return PRESETS[str(schema)]
  found = LogSchema.from_file(schema)
  if found.reward is None:
    raise InputError(
      f"{schema}: reward: every log needs it; name its column, or read orders, which have none, as"
      " dataset ratings"
    )
  return found


def _from_yaml(text: str) -> Any:
  """The content of a text that is small when it is expanded: flat, and without aliases."""
  depth = 0
  for event in yaml.parse(text, _LOADER):
    depth += isinstance(event, yaml.CollectionStartEvent)
    depth -= isinstance(event, yaml.CollectionEndEvent)
    if depth > _DEEPEST:
      raise ValueError(f"more than {_DEEPEST} levels, at {event.start_mark}")
    if isinstance(event, yaml.AliasEvent):
      raise ValueError(f"alias *{event.anchor}, at {event.start_mark}; write its content there")
  return _UniqueKeys(text).get_single_data()


class _UniqueKeys(_LOADER):  # type: ignore[misc, valid-type]
  """YAML in which repeated keys are errors."""

  def construct_mapping(self, node, deep=False):
    if isinstance(node, yaml.MappingNode):
      twice = repeated(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
      if twice:
        raise yaml.constructor.ConstructorError(problem=f"key {twice[0]!r} is there twice")
    return super().construct_mapping(node, deep)


def _features(side: str, content: Any) -> Iterator[FeatureColumn]:
  if not isinstance(content, Mapping):
    raise InputError(
      f"{side}: expected `name: kind` lines, got {_shown(content)}; kinds are {', '.join(KINDS)}"
    )
  for name, spec in content.items():
    given = {"kind": spec} if isinstance(spec, str) else spec
    if not isinstance(name, str) or not isinstance(given, Mapping) or "kind" not in given:
      raise InputError(
        f"{side}: {_shown(name)} needs a kind, {', '.join(KINDS)}, or {{kind: ..., column: ...,"
        f" separator: ...}}; got {_shown(spec)}"
      )
    known = ("kind", "column", "separator", "events")
    odd = [f"{key}: {_shown(value)}" for key, value in given.items() if not _is_setting(key, value)]
    if odd:
      raise InputError(f"{side}: {name!r} has {odd[0]}; a feature has text for {', '.join(known)}")
    try:
      yield FeatureColumn(name, **given)
    except InputError as error:
      raise InputError(f"{side}: {error}") from None


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


def _is_weight(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and 1e-15 <= value < 1e15


def _is_setting(key: Any, value: Any) -> bool:
  return key in ("kind", "column", "separator", "events") and isinstance(value, str)


def _spec(feature: FeatureColumn) -> str | dict[str, str]:
  extra = {}
  if feature.column != feature.name:
    extra["column"] = feature.column
  if feature.kind == "bag" or feature.separator != "|":
    extra["separator"] = feature.separator
  if feature.events:
    extra["events"] = feature.events
  return {"kind": feature.kind, **extra} if extra else feature.kind


def _similar(key: Any, known: list[str]) -> str:
  close = difflib.get_close_matches(str(key)[:80], known, 1)
  return f" did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
  """A value in a message; long ones are shortened."""
  short = reprlib.Repr()
  short.maxstring = short.maxother = 80
  return short.repr(value)
