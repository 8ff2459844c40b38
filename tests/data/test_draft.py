"""Drafts of schemas: what names and values give away, and what they do not."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.files import small_log
from tf_twostage.data import draft
from tf_twostage.data.log_schema import PRESETS, LogSchema
from tf_twostage.errors import InputError


def drafted(tmp_path, frame, items=None, users=None):
  paths = []
  for name, table in (("log", frame), ("items", items), ("users", users)):
    paths.append(None if table is None else tmp_path / f"{name}.csv")
    if table is not None:
      table.to_csv(paths[-1], index=False)
  text = draft.draft(*paths)
  return LogSchema.from_dict(yaml.safe_load(text)), text


def log(n=200, **columns):
  rng = np.random.default_rng(0)
  user = rng.integers(0, 20, n)
  frame = pd.DataFrame(
    {
      "user_id": user,
      "item_id": rng.integers(0, 9, n),
      "propensity": rng.uniform(0.1, 0.9, n),
      "reward": rng.integers(0, 2, n),
    }
  )
  return frame.assign(**columns)


@pytest.mark.parametrize(
  ("role", "column"),
  [
    ("propensity", "pscore"),
    ("propensity", "Propensity Score"),
    ("propensity", "action_prob"),
    ("reward", "click"),
    ("reward", "isClicked"),
    ("user_id", "userId"),
    ("user_id", "visitor_id"),
    ("item_id", "movieId"),
    ("item_id", "action"),
    ("user_id", "visitor"),
    ("item_id", "product"),
    ("reward", "watch_seconds"),
  ],
)
def test_synonyms_are_known(tmp_path, role, column):
  schema, text = drafted(tmp_path, log().rename(columns={role: column}))
  assert getattr(schema, role) == column
  assert f"{role}: {column}" in text
  assert "by its name" in text


def test_a_name_whose_values_do_not_fit_is_not_believed(tmp_path):
  schema, text = drafted(tmp_path, log(propensity=-1.5))
  assert schema.propensity is None
  assert "they will have to be estimated" in text


def test_values_are_believed_where_they_are_unmistakable(tmp_path):
  frame = log(when=[f"2024-01-{1 + i % 28:02d} 10:00" for i in range(200)])
  frame = frame.rename(columns={"propensity": "col1", "reward": "col2"})
  schema, text = drafted(tmp_path, frame)
  assert (schema.propensity, schema.reward, schema.time) == ("col1", "col2", "when")
  assert text.count("by its values") == 3


def test_other_columns_are_sorted_by_whether_they_describe_the_user(tmp_path):
  frame = log()
  frame = frame.assign(
    country=np.array(["AT", "FR", "JP"])[frame["user_id"] % 3],
    age=frame["user_id"] * 2.5,
    likes=[f"g{u}|g{u + 1}" for u in frame["user_id"]],
    battery=np.random.default_rng(1).uniform(0, 1, 200) * 100,
    page=[f"/{i}" for i in range(200)],
  )
  schema, text = drafted(tmp_path, frame)
  assert [(f.name, f.kind) for f in schema.user_features] == [
    ("country", "categorical"),
    ("age", "numeric"),
    ("likes", "bag"),
  ]
  assert [f.name for f in schema.context_features] == ["battery"]
  assert "#   page" in text


def test_tables_give_keys_titles_and_features(tmp_path):
  items = small_log.items().rename(columns={"product": "sku"})
  users = pd.DataFrame({"user_id": [f"v{i}" for i in range(4)], "gender": list("FMFM")})
  frame = small_log.frame().rename(columns={"visitor": "user_id", "product": "item"})
  schema, _ = drafted(tmp_path, frame.drop(columns="gender"), items, users)
  assert (schema.item_id, schema.item_key, schema.title) == ("item", "sku", "name")
  assert [f.name for f in schema.item_features] == ["genres", "price"]
  assert [f.name for f in schema.user_features] == ["gender"]


def test_what_is_missing_is_said(tmp_path):
  (tmp_path / "log.csv").write_text("a,b\nx,y\nz,y\n")
  text = draft.draft(tmp_path / "log.csv")
  assert "item_id: null" in text
  assert "MISSING: name the column of the item ids" in text
  with pytest.raises(InputError, match="item_id: every log needs it"):
    LogSchema.from_dict(yaml.safe_load(text))


def test_a_log_without_rows_is_refused(tmp_path):
  (tmp_path / "log.csv").write_text("a,b\n")
  with pytest.raises(InputError, match="no rows to draft a schema from"):
    draft.draft(tmp_path / "log.csv")


def test_open_bandit_is_recognised(test_data):
  directory = test_data / "open-bandit" / "random" / "all"
  if not directory.exists():
    pytest.skip("TF_TWOSTAGE_TEST_DATA holds no open-bandit/random/all")
  text = draft.draft(directory / "all.csv", directory / "item_context.csv")
  assert LogSchema.from_dict(yaml.safe_load(text)) == PRESETS["open_bandit"]
  assert "user-item_affinity_0 ... user-item_affinity_79 (80 columns)" in text


def test_a_draft_loads_whatever_the_columns_are_called(tmp_path):
  """Names of roles, one name in both files, line breaks, columns without values or repeated."""
  frame = log(price=np.arange(200) % 7 + 0.5)
  items = pd.DataFrame({"item_id": range(9), "position": range(9), "price": np.arange(9) / 2})
  items = items.assign(split=[*"abcabcabc"], empty=None, **{"first\nsecond": [*"abcabcabc"]})
  schema, text = drafted(tmp_path, frame, items)
  assert [(f.name, f.column, f.kind) for f in schema.item_features] == [
    ("item_position", "position", "numeric"),
    ("price", "price", "numeric"),
    ("item_split", "split", "categorical"),
    ("first\nsecond", "first\nsecond", "categorical"),
  ]
  assert [(f.name, f.column) for f in schema.context_features] == [("context_price", "price")]
  assert "#   empty" in text
  data = small_log.read(tmp_path / "log.csv", tmp_path / "items.csv", schema)
  assert (len(data), data.num_items) == (200, 9)


def test_columns_that_share_a_name_are_not_read(tmp_path):
  rows = "u1,i1,0.5,1,2,3,,\nu2,i2,0.5,0,2,3,,\n"
  (tmp_path / "log.csv").write_text("user_id,item_id,propensity,reward,x,x,,\n" + rows)
  text = draft.draft(tmp_path / "log.csv")
  assert "#   x" in text
  schema = LogSchema.from_dict(yaml.safe_load(text))
  assert len(small_log.read(tmp_path / "log.csv", None, schema)) == 2


def test_typed_headers_name_roles_and_kinds(tmp_path):
  types = {"user_id": "token", "item_id": "token", "reward": "float", "moods": "token_seq"}
  frame = log(moods="calm glad", propensity=0.5)[[*types]]
  frame.loc[0, "moods"] = "calm"
  frame.columns = [f"{name}:{kind}" for name, kind in types.items()]
  path = tmp_path / "log.inter"
  frame.to_csv(path, sep="\t", index=False)
  schema = LogSchema.from_dict(yaml.safe_load(draft.draft(path)))
  assert (schema.user_id, schema.item_id) == ("user_id:token", "item_id:token")
  assert schema.reward == "reward:float"
  draft_of_kind = draft._kind(draft.Column("moods:token_seq", frame["moods:token_seq"], None))
  assert draft_of_kind == ("bag", " ")


@pytest.mark.parametrize("values", [["20240501", "20240502"], ["2024-05-01 12:00:00 UTC"] * 2])
def test_dates_without_punctuation_are_times(tmp_path, values):
  schema, _ = drafted(tmp_path, log(seen=values * 100))
  assert schema.time == "seen"


@pytest.mark.parametrize(
  ("column", "hint"),
  [
    ("start_date", "# available_from: start_date  # by its name: when items come"),
    ("added", "# available_from: added  # dates: only if items come then"),
  ],
)
def test_dates_of_items_are_a_hint_and_no_category(tmp_path, column, hint):
  dates = ["2024-05-01", "", *["2024-05-02"] * 7]
  items = pd.DataFrame({"item_id": range(9), column: dates, "brand": list("aabbaabba")})
  schema, text = drafted(tmp_path, log(), items)
  assert [f.name for f in schema.item_features] == ["brand"]
  assert hint in re.sub(" +#", "  #", text)


def test_dates_with_blanks_are_no_time_of_rows(tmp_path):
  schema, _ = drafted(tmp_path, log(bought_at=["2024-05-01", ""] * 100))
  assert schema.time is None


def test_truth_values_are_rewards(tmp_path):
  frame = log()
  schema, _ = drafted(tmp_path, frame.assign(reward=frame["reward"] == 1))
  assert schema.reward == "reward"


def impressions(**columns):
  """80 slates of 4 slots, each of one user at one moment."""
  request, slot = np.divmod(np.arange(320), 4)
  rng = np.random.default_rng(0)
  frame = pd.DataFrame(
    {
      "request_id": [f"r{i}" for i in request],
      "user_id": [f"u{i % 9}" for i in request],
      "item_id": rng.integers(0, 30, 320),
      "rank": slot,
      "shown_at": [f"2024-05-01T{i // 60:02d}:{i % 60:02d}:00Z" for i in request],
      "click": rng.integers(0, 2, 320),
    }
  )
  return frame.assign(**columns).drop(columns=[k for k, v in columns.items() if v is None])


@pytest.mark.parametrize("name", ["request_id", "impression_id", "slateId", "list", "session"])
def test_slates_are_found_by_the_name_of_their_id(tmp_path, name):
  schema, text = drafted(tmp_path, impressions().rename(columns={"request_id": name}))
  assert (schema.slate_id, schema.position, schema.first_position) == (name, "rank", 0)
  assert "80 slates of 4 to 4 rows" in text
  data = small_log.read(tmp_path / "log.csv", None, schema)
  assert data.slates().rows.shape == (80, 4)


def test_a_session_with_its_time_is_the_id_of_a_slate(tmp_path):
  frame = impressions(request_id=None, session_id=[f"s{i // 16}" for i in range(320)])
  schema, text = drafted(tmp_path, frame.sample(frac=1, random_state=0))
  assert schema.slate_id == ("session_id", "shown_at")
  assert "slate_id: [session_id, shown_at]  # by its values; 80 slates of 4 to 4 rows" in text
  assert small_log.read(tmp_path / "log.csv", None, schema).slates().rows.shape == (80, 4)


def test_positions_from_one_are_drafted_as_such(tmp_path):
  frame = impressions()
  schema, text = drafted(tmp_path, frame.assign(rank=frame["rank"] + 1))
  assert "first_position: 1 " in text
  data = small_log.read(tmp_path / "log.csv", None, schema)
  np.testing.assert_array_equal(data.rows.position, frame["rank"])


@pytest.mark.parametrize(
  ("columns", "remark"),
  [
    ({"rank": None}, "not request_id: MISSING: no column of the position"),
    ({"user_id": [f"u{i % 9}" for i in range(320)]}, "80 of 80 have rows of several users"),
    ({"rank": 0}, "240 rows have the position of an earlier row of it"),
  ],
)
def test_an_id_that_makes_no_slates_is_left_out_with_the_reason(tmp_path, columns, remark):
  schema, text = drafted(tmp_path, impressions(**columns))
  assert schema.slate_id is None
  assert remark in text
  assert len(small_log.read(tmp_path / "log.csv", None, schema)) == 320


def test_several_kinds_of_feedback_make_one_reward(tmp_path):
  click = impressions()["click"]
  frame = impressions(purchase=click * (np.arange(320) % 8 == 0), watch_seconds=click * 40.0)
  schema, text = drafted(tmp_path, frame)
  assert schema.reward == {"click": 1, "purchase": 1, "watch_seconds": 0.025}
  assert "set the weight of each" in text
  alone, _ = drafted(tmp_path, frame.rename(columns={"watch_seconds": "reward"}))
  assert alone.reward == "reward"


def test_policies_and_probabilities_of_slots_are_found(tmp_path):
  logged = {"policy": np.where(np.arange(320) % 8 < 4, "a", "b"), "propensity": 0.25}
  frame = impressions(**logged, cascade_pscore=0.01, examination=0.5)
  schema, _ = drafted(tmp_path, frame)
  assert (schema.policy, schema.propensity) == ("policy", "propensity")
  assert (schema.cascade_propensity, schema.examination) == ("cascade_pscore", "examination")
  several = impressions(
    policy=logged["policy"], p_a=np.tile([0.25, 0.5], 160), pB=[*[0.5, 0.1] * 160]
  )
  schema, _ = drafted(tmp_path, several)
  assert schema.propensity == {"a": "p_a", "b": "pB"}


def test_numbers_of_ids_are_no_context(tmp_path):
  schema, text = drafted(
    tmp_path, log(**{"Trip ID": np.arange(200) % 9, "load": np.arange(200) % 7})
  )
  assert [f.name for f in schema.context_features] == ["load"]
  assert "#   Trip ID" in text


NAMES = {
  "user": "user_id visitor uid",
  "item": "item_id product ad_id",
  "slate": "request_id slateId session list",
  "slot": "position rank slot",
  "click": "click is_click y reward",
  "bought": "purchase order revenue",
  "time": "timestamp shown_at date",
  "policy": "policy arm variant",
  "propensity": "propensity pscore prob",
  "path": "cascade_propensity pscore_cascade",
  "seen": "examination viewability",
  "other": "device score note hour",
}


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_draft_of_whatever_was_logged_loads(tmp_path_factory, seed):
  """Slates of several sizes in any order, under many names, with columns left out."""
  rng = np.random.default_rng(seed)
  size = rng.integers(1, 5, 30)
  request = np.repeat(np.arange(30), size)
  slot = np.arange(len(request)) - np.repeat(np.cumsum(size) - size, size)
  user, n = rng.integers(0, 8, 30)[request], len(request)
  click = rng.integers(0, 2, n)
  values = {
    "user": [f"u{u}" for u in user],
    "item": rng.integers(0, 9, n),
    "slate": rng.choice([[f"r{r}" for r in request], list(map(str, request))]),
    "slot": slot + rng.integers(0, 2),
    "click": click.astype(bool) if rng.random() < 0.5 else click,
    "bought": click * rng.uniform(0, 50, n).round(2),
    "time": 1.7e9 + 60 * request if rng.random() < 0.5 else pd.to_datetime(60 * request, unit="s"),
    "policy": np.where(request % 2, "a", "b"),
    "propensity": rng.uniform(0.01, 1, n),
    "path": rng.uniform(0.01, 1, n),
    "seen": 1 / (1 + slot),
    "other": rng.normal(size=n) if rng.random() < 0.5 else np.where(slot, "x", None),
  }
  kept = [key for key in values if key in ("user", "item", "click") or rng.random() < 0.7]
  rows = pd.DataFrame({rng.choice(NAMES[key].split()): values[key] for key in kept})
  rows = rows.sample(frac=1, random_state=seed)
  directory = tmp_path_factory.mktemp("draft")
  schema, _ = drafted(directory, rows)
  data = small_log.read(directory / "log.csv", None, schema)
  assert len(data) == n
  if {"slate", "slot"} <= {*kept}:
    assert data.slates().rows.shape[0] == 30


def test_what_users_did_before_is_proposed_where_times_tell_it(tmp_path):
  log = pd.DataFrame({"user": ["a", "a", "b"], "item": list("xyx"), "click": [1, 0, 1]})
  log.assign(time=[1.5, 2.5, 3.25]).to_csv(tmp_path / "log.csv", index=False)
  proposed = "# history: {kind: sequence, column: item}"
  assert proposed in draft.draft(tmp_path / "log.csv")
  kinds = log.assign(time=[1.5, 2.5, 3.25], event=["view", "buy", "view"])
  kinds.to_csv(tmp_path / "kinds.csv", index=False)
  assert f"{proposed[:-1]}, events: event}}" in draft.draft(tmp_path / "kinds.csv")
  log.to_csv(tmp_path / "timeless.csv", index=False)
  assert proposed not in draft.draft(tmp_path / "timeless.csv")
