"""Logs of slates: from files and frames to rows by slate and slot."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_twostage.data.files.bad_rows import BadRowsError
from tf_twostage.data.files.shards import convert
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.data.slates import Slates
from tf_twostage.errors import InputError

COLUMNS = {
  "user": "user",
  "item": "item",
  "slate": "request",
  "policy": "arm",
  "propensity": "p",
  "cascade_propensity": "path",
  "examination": "seen",
  "reward": {"click": 1, "purchase": 5},
  "position": "slot",
  "time": "at",
}
IDS = {"user": "user_id", "item": "item_id", "slate": "slate_id"}
SCHEMA = LogSchema.from_dict({IDS.get(role, role): column for role, column in COLUMNS.items()})


def frame(num_slates=30, seed=0):
  """Slates of 1 to 3 slots, in the order of a shuffled log."""
  rng = np.random.default_rng(seed)
  size = rng.integers(1, 4, num_slates)
  request = np.repeat(np.arange(num_slates), size)
  slot = np.arange(len(request)) - np.repeat(np.cumsum(size) - size, size)
  rows = pd.DataFrame(
    {
      "user": request % 7,
      "item": [f"i{i}" for i in rng.integers(9, size=len(request))],
      "request": [f"r{r}" for r in request],
      "arm": np.where(request % 2, "old", "new"),
      "p": rng.uniform(0.1, 1, len(request)),
      "path": rng.uniform(0.1, 1, len(request)),
      "seen": 1 / (1 + slot),
      "click": rng.integers(2, size=len(request)),
      "purchase": rng.integers(2, size=len(request)),
      "slot": slot,
      "at": 10 * request + slot,
    }
  )
  return rows.sample(frac=1, random_state=seed).reset_index(drop=True)


def test_frames_files_and_shards_hold_the_same_slates(tmp_path):
  rows = frame()
  memory = BanditLog.from_pandas(rows, **COLUMNS)
  rows.to_csv(tmp_path / "log.csv", index=False)
  SCHEMA.to_file(tmp_path / "schema.yaml")
  files = BanditLog.from_files(tmp_path / "log.csv", schema=tmp_path / "schema.yaml")
  convert(tmp_path / "log.csv", tmp_path / "shards", SCHEMA)
  shards = BanditLog.from_files(tmp_path / "shards", schema=tmp_path / "shards" / "schema.yaml")
  assert memory.fingerprint() == files.fingerprint() == shards.fingerprint()
  np.testing.assert_allclose(memory.rows.reward, rows["click"] + 5 * rows["purchase"])
  np.testing.assert_allclose(memory.examination, rows["seen"], rtol=1e-6)
  np.testing.assert_allclose(memory.cascade_propensity, rows["path"], rtol=1e-6)
  assert [memory.policies[code] for code in memory.policy] == rows["arm"].tolist()


def test_several_columns_are_the_id_of_a_slate_together(tmp_path):
  rows = frame().assign(at=lambda f: f["request"].str[1:].astype(int) // 2, side="left")
  rows["side"] = np.where(rows["request"].str[1:].astype(int) % 2, "left", "right")
  log = BanditLog.from_pandas(rows, **{**COLUMNS, "slate": ["side", "at"]})
  single = BanditLog.from_pandas(rows, **COLUMNS)
  np.testing.assert_array_equal(log.slates().rows, single.slates().rows)
  rows.to_csv(tmp_path / "log.csv", index=False)
  schema = LogSchema.from_dict({**SCHEMA.to_dict(), "slate_id": ["side", "at"]})
  schema.to_file(tmp_path / "schema.yaml")
  convert(tmp_path / "log.csv", tmp_path / "shards", tmp_path / "schema.yaml")
  shards = BanditLog.from_files(tmp_path / "shards", schema=tmp_path / "shards" / "schema.yaml")
  assert shards.fingerprint() == log.fingerprint()


def test_positions_may_count_from_one(tmp_path):
  rows = frame()
  log = BanditLog.from_pandas(rows.assign(slot=rows["slot"] + 1), **COLUMNS, first_position=1)
  assert log.fingerprint() == BanditLog.from_pandas(rows, **COLUMNS).fingerprint()
  rows.assign(slot=rows["slot"] + 1).to_csv(tmp_path / "log.csv", index=False)
  schema = LogSchema.from_dict({**SCHEMA.to_dict(), "first_position": 1})
  convert(tmp_path / "log.csv", tmp_path / "shards", schema)
  shards = BanditLog.from_files(tmp_path / "shards", schema=tmp_path / "shards" / "schema.yaml")
  assert shards.fingerprint() == log.fingerprint()
  with pytest.raises(BadRowsError, match="'slot' must be a whole number >= 1"):
    BanditLog.from_pandas(rows, **COLUMNS, first_position=1)


def test_rows_are_found_by_slate_and_slot():
  rows = frame()
  log = BanditLog.from_pandas(rows, **COLUMNS)
  slates = log.slates()
  assert slates.mask.sum() == len(rows)
  found = slates.rows[slates.mask]
  s, k = np.nonzero(slates.mask)
  np.testing.assert_array_equal(rows["slot"].to_numpy()[found], k)
  assert pd.Series(rows["request"].to_numpy()[found]).groupby(s).nunique().eq(1).all()
  np.testing.assert_array_equal(slates.user_index[s], log.rows.user_index[found])
  rewards = slates.of(log.rows.reward)
  by_request = rows.assign(r=log.rows.reward).groupby("request", sort=False)["r"].sum()
  np.testing.assert_allclose(sorted(rewards.sum(axis=1)), sorted(by_request))


@settings(deadline=None)
@given(seed=st.integers(0, 50), method=st.sampled_from(["time", "random", "user"]))
def test_splits_keep_slates_whole(seed, method):
  log = BanditLog.from_pandas(frame(seed=seed), **COLUMNS)
  parts = [set(part.slate.tolist()) for part in log.split(method, seed=seed)]
  assert sum(map(len, parts)) == len(set.union(*parts)) == 30


def test_examined_rows_have_rewards_divided_by_examination():
  rows = frame()
  log = BanditLog.from_pandas(rows, **COLUMNS)
  reward = rows["click"] + 5 * rows["purchase"]
  np.testing.assert_allclose(log.examined().reward, reward / rows["seen"], rtol=1e-6)
  plain = BanditLog.from_pandas(rows, **{**COLUMNS, "examination": None})
  assert plain.examined() is plain.rows


def test_examination_that_is_too_small_is_named_with_its_limit():
  rows = frame()
  with pytest.raises(BadRowsError, match=r"column 'seen' must lie in \[1e-06, 1\]"):
    BanditLog.from_pandas(rows.assign(seen=1e-30), **COLUMNS)
  least = BanditLog.from_pandas(rows.assign(seen=1e-6), **COLUMNS)
  assert np.isfinite(least.examined().reward).all()
  large = BanditLog.from_pandas(rows.assign(seen=1e-6, click=1e14), **COLUMNS)
  with pytest.raises(InputError, match=r"reward divided by examination must be .* at most 1e15"):
    large.examined()
  with pytest.raises(InputError, match=r"examination must be at least .*slot 1, value '0.0'"):
    least.with_examination(np.array([1, 0, 0.1]))


def test_a_curve_of_examination_counts_from_its_largest_value():
  log = BanditLog.from_pandas(frame(), **COLUMNS)
  curved = log.with_examination(np.array([0.5, np.nan, 0.25]))
  expected = np.array([1.0, 0.5, 0.5])[log.rows.position]
  np.testing.assert_allclose(curved.examination, expected)
  with pytest.raises(InputError, match="positions up to 2, and examination 2 slots"):
    log.with_examination(np.ones(2))


@pytest.mark.parametrize(
  ("slate", "position", "user", "message"),
  [
    ([0, 0, 1], [0, 0, 0], [0, 0, 0], "2 rows, the first of them row 0, have the slate and posit"),
    ([0, 0, 1], [0, 1, 0], [0, 1, 0], "1 rows, the first of them row 1, have a slate id that ano"),
    ([0, 0, 1], [0, 5000, 0], [0, 0, 0], "positions reach 5000"),
  ],
)
def test_slates_that_cannot_be_are_refused(slate, position, user, message):
  with pytest.raises(InputError, match=message):
    Slates.of_rows(np.array(slate), np.array(position), np.array(user))


def test_a_log_without_slates_says_what_to_name():
  log = BanditLog.from_pandas(frame(), **{**COLUMNS, "slate": None, "cascade_propensity": None})
  with pytest.raises(InputError, match="the log has no slates; name the columns"):
    log.slates()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"position": None}, "slates need the slot of each row"),
    ({"slate_id": None}, "cascade_propensity: it belongs to slates"),
    ({"propensity": None}, "cascade_propensity: it belongs to slates"),
    ({"slate_id": ["request"]}, "slate_id: expected a column, or several different ones"),
    ({"slate_id": ["request", 3]}, "slate_id: expected a column, or several different ones"),
    ({"first_position": 2}, "first_position: expected 0 or 1, got 2"),
    ({"reward": {}}, "every log needs it"),
    ({"reward": {"click": 0}}, "'click': 0; write `column: weight` lines"),
    ({"reward": {"click": 1e-40}}, "'click': 1e-40; write `column: weight` lines"),
    ({"reward": {"click": "1"}}, "'click': '1'; write `column: weight` lines"),
    ({"reward": {"click": 1, "slot": 2}}, "column 'slot' has two roles"),
  ],
)
def test_schemas_that_contradict_themselves_are_refused(change, message):
  with pytest.raises(InputError, match=message):
    LogSchema.from_dict(SCHEMA.to_dict() | change)


def test_a_schema_of_slates_survives_its_file(tmp_path):
  for name in ("schema.yaml", "schema.json"):
    SCHEMA.to_file(tmp_path / name)
    assert LogSchema.from_file(tmp_path / name) == SCHEMA


@pytest.mark.parametrize(
  ("column", "value", "message"),
  [
    ("purchase", -1, "purchase"),
    ("purchase", 1e15, "must make a reward of at most 1e15"),
    ("request", "", "must not be blank"),
    ("arm", None, "must not be blank"),
    ("seen", 0.0, "'seen' must lie in .* that the row's slot is examined"),
    ("path", 1.5, "'path' must lie in"),
    ("slot", 0.5, "'slot' must be a whole number"),
  ],
)
def test_bad_cells_are_named(column, value, message):
  rows = frame()
  rows[column] = rows[column].astype(object)
  rows.loc[3, column] = value
  with pytest.raises(BadRowsError, match=message):
    BanditLog.from_pandas(rows, **COLUMNS)
