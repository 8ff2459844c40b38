"""What a user did before each row of a log: strictly earlier, and never the row's own slate."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_twostage.config import Config, EncoderConfig, UserLogConfig
from tf_twostage.data import histories
from tf_twostage.data.files.shards import convert
from tf_twostage.data.histories import FIRST, UNKNOWN
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.data.rows import joined
from tf_twostage.environment.streaming import stream_log
from tf_twostage.errors import InputError
from tf_twostage.workspace import Workspace

ROWS = st.lists(
  st.tuples(
    st.integers(0, 2),  # user
    st.integers(0, 3),  # item
    st.integers(0, 3),  # time
    st.booleans(),  # whether it was rewarded
    st.integers(0, 1),  # slate of the user
    st.integers(0, 1),  # kind of event
  ),
  min_size=1,
  max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.booleans(), st.integers(1, 4))
def test_histories_are_what_a_loop_over_earlier_rows_finds(rows, in_slates, length):
  user, item, time, earns, slate, kind = map(np.array, zip(*rows, strict=True))
  slate = 2 * user + slate
  found = histories.earlier(
    user,
    item,
    time,
    earns,
    num_users=4,
    slate=slate if in_slates else None,
    events=kind,
    kinds=("view", "buy"),
  )
  for row in range(len(rows)):
    before = time[slate == slate[row]].min() if in_slates else time[row]
    past = [i for i in np.lexsort((np.arange(len(rows)), time)) if user[i] == user[row]]
    expected = [i for i in past if time[i] < before and earns[i]]
    place = slice(found.begin[row], found.end[row])
    assert (found.codes[place] - FIRST).tolist() == item[expected].tolist()
    assert (found.events[place] - FIRST).tolist() == kind[expected].tolist()
  for u in range(4):
    past = [i for i in np.lexsort((np.arange(len(rows)), time)) if user[i] == u and earns[i]]
    latest = found.codes[slice(*found.latest[:, u])]
    assert latest.tolist() == [item[i] + FIRST for i in past]


FRAME = pd.DataFrame(
  {
    "user": list("aababa"),
    "item": list("xyzxzy"),
    "click": [1, 1, 1, 0, 1, 1],
    "day": [1, 2, 3, 4, 5, 5],
    "seen": [[], ["x"], ["q", "z"], ["x", "y", "z"], [], ["y"]],
  }
)


def log_of(frame=FRAME, **columns):
  given = {"time": "day", "sequences": {"history": "item", "seen": "seen"}, **columns}
  return BanditLog.from_pandas(frame, user="user", item="item", reward="click", **given)


def test_rows_have_the_last_items_after_padding():
  log = log_of().with_sequence_length(2)
  x, y, z = FIRST, FIRST + 1, FIRST + 2
  expected = {
    "history": [[0, 0], [0, x], [0, 0], [x, y], [0, z], [x, y]],
    "seen": [[0, 0], [0, x], [UNKNOWN, z], [y, z], [0, 0], [0, y]],
  }
  for name, codes in expected.items():
    np.testing.assert_array_equal(log.rows.past(np.arange(6))[name], codes)
  texts = log.rows.histories["seen"].raw("seen", [2, 1], log.schema.item_id.vocabulary)["seen"]
  assert texts.tolist() == [["\0", "z"], ["", "x"]]


TIMED = {"history": {"kind": "timed_sequence", "column": "item"}}


def test_events_have_ages_as_of_the_row_and_of_the_end_of_the_log():
  log = log_of(sequences=TIMED).with_sequence_length(2)
  past, ids = log.rows.histories["history"], log.schema.item_id.vocabulary
  raw = past.raw("history", np.arange(6), ids)
  np.testing.assert_array_equal(
    raw["history_ages"], [[0, 0], [0, 1], [0, 0], [3, 2], [0, 2], [4, 3]]
  )
  assert raw["history"][5].tolist() == ["x", "y"]
  np.testing.assert_array_equal(log.users_now()["history_ages"], [[3, 0], [2, 0]])
  # 1 + log2(1 + age): 2 from 1 on, 3 from 3 on
  coded = log.rows.past(np.arange(6))["history_ages"]
  np.testing.assert_array_equal(coded, [[0, 0], [0, 2], [0, 0], [3, 2], [0, 2], [3, 3]])


def test_the_age_of_an_event_in_a_slate_is_that_at_its_start():
  frame = pd.DataFrame({"user": "a", "item": list("xyz"), "click": 1, "day": [1, 5, 9]})
  frame["slate"], frame["slot"] = [1, 2, 2], [0, 0, 1]
  log = log_of(frame, sequences=TIMED, slate="slate", position="slot").with_sequence_length(2)
  past = log.rows.histories["history"].raw("history", [1, 2], log.schema.item_id.vocabulary)
  assert past["history"].tolist() == [["", "x"], ["", "x"]]
  assert past["history_ages"].tolist() == [[0, 4], [0, 4]]


EVENTS = FRAME.assign(
  did=["view", "buy", None, " view", "buy", "view"],
  saw=[[], ["view"], ["buy", ""], ["buy", "view", "wish"], [], ["view"]],
)
WITH_KINDS = {
  "history": {"kind": "timed_sequence", "column": "item", "events": "did"},
  "seen": {"kind": "sequence", "column": "seen", "events": "saw"},
}


def test_events_of_all_rows_have_kinds_but_blank_ones():
  log = log_of(EVENTS, sequences=WITH_KINDS).with_sequence_length(2)
  past, ids = log.rows.histories["history"], log.schema.item_id.vocabulary
  raw = past.raw("history", np.arange(6), ids)
  expected = {  # row 2 is no event; row 3 is one without a reward
    "history": [["", ""], ["", "x"], ["", ""], ["x", "y"], ["", ""], ["y", "x"]],
    "history_events": [
      ["", ""],
      ["", "view"],
      ["", ""],
      ["view", "buy"],
      ["", ""],
      ["buy", "view"],
    ],
    "history_ages": [[0, 0], [0, 1], [0, 0], [3, 2], [0, 0], [3, 1]],
  }
  for name, values in expected.items():
    assert raw[name].tolist() == values
  assert log.users_now()["history_events"].tolist() == [["view", "view"], ["", "buy"]]


def test_kinds_of_lists_stand_beside_their_items():
  log = log_of(EVENTS, sequences=WITH_KINDS).with_sequence_length(2)
  feature = log.schema.sequences[1]
  assert feature.kinds == ("buy", "view", "wish")
  buy, view, wish = range(FIRST, FIRST + 3)
  expected = [[0, 0], [0, view], [buy, UNKNOWN], [view, wish], [0, 0], [0, view]]
  np.testing.assert_array_equal(log.rows.past(np.arange(6))["seen_events"], expected)


def test_kinds_are_the_same_in_files_and_in_parts(tmp_path):
  expected = log_of(EVENTS, sequences=WITH_KINDS)
  EVENTS.to_parquet(tmp_path / "log.parquet")
  schema = LogSchema.from_dict(SCHEMA | {"user_features": WITH_KINDS})
  assert LogSchema.from_dict(schema.to_dict()) == schema
  convert(tmp_path / "log.parquet", tmp_path / "native", schema, num_shards=1)
  native = BanditLog.from_files(tmp_path / "native", schema=tmp_path / "native/schema.yaml")
  both = joined([native.rows.select(slice(3)), native.rows.select(slice(3, 6))]).past(np.arange(6))
  for name, values in expected.rows.past(np.arange(6)).items():
    np.testing.assert_array_equal(native.rows.past(np.arange(6))[name], values)
    np.testing.assert_array_equal(both[name], values)
  assert native.schema.sequences == expected.schema.sequences


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"did": "view"}, r"'history': column 'did' must hold 2 to 1000.*1 \(first: 'view'\)"),
    ({"did": ""}, "and has no kind of event"),
    ({"saw": [["view"]] * 6}, "must list one kind of event for each item of column 'seen'"),
  ],
)
def test_kinds_that_tell_nothing_are_refused(change, reason):
  with pytest.raises(InputError, match=reason):
    log_of(
      EVENTS.assign(**{name: [v] * 6 if isinstance(v, str) else v for name, v in change.items()}),
      sequences=WITH_KINDS,
    )


def test_users_of_now_have_all_they_did():
  users = log_of().with_sequence_length(3).users_now()
  np.testing.assert_array_equal(users["history"], [["x", "y", "y"], ["", "z", "z"]])
  np.testing.assert_array_equal(users["seen"], [["", "", "y"], ["", "", ""]])


def test_parts_of_a_log_keep_the_past_of_their_rows():
  log = log_of()
  train, valid, test = log.split("time", validation=0.2, test=0.3)
  both = histories.joined([train.rows.histories["history"], test.rows.histories["history"]])
  rows = np.concatenate([np.flatnonzero(FRAME["day"] < 4), np.flatnonzero(FRAME["day"] == 5)])
  whole = log.rows.histories["history"]
  np.testing.assert_array_equal(both.padded(np.arange(5)), whole.padded(rows))
  everyone = np.arange(2)
  np.testing.assert_array_equal(both.of_users().padded(everyone), whole.of_users().padded(everyone))
  assert len(valid.rows.histories["seen"]) == 1


def test_batches_have_the_past_of_their_rows():
  log = log_of().with_sequence_length(2)
  users = {"user_id": np.array([1, 2])}
  batch = next(iter(log.rows.batches(users, batch_size=6, seed=0)))
  past = {tuple(row) for row in log.rows.histories["history"].padded(np.arange(6)).numpy()}
  assert batch["user"]["history"].shape == [6, 2]
  assert {tuple(row) for row in batch["user"]["history"].numpy()} == past


SCHEMA = {
  "user_id": "user",
  "item_id": "item",
  "reward": "click",
  "propensity": None,
  "position": None,
  "time": "day",
  "user_features": {
    "history": {"kind": "sequence", "column": "item"},
    "seen": {"kind": "sequence"},
  },
}


def test_files_with_their_own_schema_have_the_same_past(tmp_path):
  FRAME.to_parquet(tmp_path / "log.parquet")
  schema = LogSchema.from_dict(SCHEMA)
  assert LogSchema.from_dict(schema.to_dict()) == schema
  log = BanditLog.from_files(tmp_path / "log.parquet", schema=schema)
  convert(tmp_path / "log.parquet", tmp_path / "native", schema, num_shards=1)
  native = BanditLog.from_files(tmp_path / "native", schema=tmp_path / "native/schema.yaml")
  for name in ("history", "seen"):
    expected = log_of().rows.histories[name].padded(np.arange(6))
    for found in (log, native):
      np.testing.assert_array_equal(found.rows.histories[name].padded(np.arange(6)), expected)


def test_histories_stand_beside_a_table_of_users():
  users = pd.DataFrame({"user": ["a", "b"], "age": [20.5, 30.25]})
  log = log_of(users=users)
  assert [f.name for f in log.schema.user] == ["user_id", "age", "history", "seen"]
  np.testing.assert_array_equal(log.rows.histories["seen"].end, log_of().rows.histories["seen"].end)


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"time": None}, "'history' is made of earlier rows"),
    ({"user_id": None, "user_features": SCHEMA["user_features"]}, "'history' is made of earlier"),
    ({"item_features": {"also": "sequence"}}, "'also' is a sequence, which users have"),
    (
      {"user_features": {"seen": "timed_sequence"}},
      "'seen' is a timed_sequence",
    ),
    (
      {"user_features": {"country": {"kind": "categorical", "events": "did"}}},
      "only a sequence has events",
    ),
    (
      {"user_features": {**WITH_KINDS, "seen_events": "categorical"}},
      "'seen_events' is listed twice",
    ),
  ],
)
def test_schemas_that_leave_no_past_are_refused(change, reason):
  with pytest.raises(InputError, match=reason):
    LogSchema.from_dict(SCHEMA | change)


def test_sequences_of_a_frame_are_named_apart():
  with pytest.raises(InputError, match="pass sequences="):
    log_of(sequences=None, user_features={"seen": "sequence"})
  with pytest.raises(InputError, match="no column 'visited'"):
    log_of(sequences={"history": "visited"})


def test_a_missing_column_of_events_is_asked_for_by_its_key(tmp_path):
  FRAME.drop(columns="seen").to_csv(tmp_path / "log.csv", index=False)
  features = {"did": {"kind": "sequence", "column": "item", "events": "acton"}}
  schema = LogSchema.from_dict({**SCHEMA, "user_features": features})
  with pytest.raises(InputError, match="say in the schema which column is `events` of did"):
    BanditLog.from_files(tmp_path / "log.csv", schema=schema)


def test_a_streamed_log_has_no_past(tmp_path):
  FRAME.drop(columns="seen").assign(p=0.5).to_csv(tmp_path / "log.csv", index=False)
  features = {"history": {"kind": "sequence", "column": "item"}}
  schema = LogSchema.from_dict({**SCHEMA, "propensity": "p", "user_features": features})
  schema.to_file(tmp_path / "schema.yaml")
  own = UserLogConfig(
    log=str(tmp_path / "log.csv"), schema=str(tmp_path / "schema.yaml"), stream=True
  )
  with pytest.raises(InputError, match="'history' is made of all rows at once"):
    stream_log(Config(user_log=own), Workspace(tmp_path / "stages"))


def test_settings_of_sequences_are_refused_where_there_is_none():
  from tf_twostage.models.encoders import EncodedTables, TwoTower

  log = log_of(sequences=None)
  tables = EncodedTables.encode(log.schema, log.users, log.items)
  with pytest.raises(InputError, match="sequence_encoder=gru changes nothing"):
    TwoTower(tables, EncoderConfig(sequence_encoder="gru"), l2=0.0)


def shown_lists(cells, **spec):
  frame = pd.DataFrame({"user": [1, 1, 2], "item": list("xyz"), "click": [1, 0, 1], "past": cells})
  return BanditLog.from_pandas(
    frame, user="user", item="item", reward="click", sequences={"past": {"column": "past", **spec}}
  )


@pytest.mark.parametrize(
  ("cells", "reason"),
  [
    (["x;y", "y;z", ""], "2 of 2 items are not .* in 'x;y'.*separated by '|', or name another"),
    ([["1", "2"], ["3"], []], "3 of 3 items are not .* in '1|2'.*write ids as in the column of"),
    (["", "", ""], "column 'past' of the sequence 'past' has no item in any row; leave"),
  ],
)
def test_lists_of_unknown_items_alone_are_refused(cells, reason):
  spec = {"separator": "|"} if isinstance(cells[0], str) else {}
  with pytest.raises(InputError, match=reason.replace("|", "[|]")) as raised:
    shown_lists(cells, **spec)
  assert "\\x1f" not in str(raised.value)


def test_a_share_of_unknown_items_is_noted():
  log = shown_lists(["x|y", "w|z", ""], separator="|")
  assert "past: 25.00% of its items are not in the catalogue (first in 'w|z')" in str(log.notes)
  assert "unknown" not in str(shown_lists(["x|y", "y|z", ""], separator="|").notes)
