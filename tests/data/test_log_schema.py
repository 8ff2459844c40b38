"""Schemas of columns: files of both kinds, defaults, presets, their form for native logs."""

import json
import time

import pytest

from tf_twostage.data.log_schema import PRESETS, FeatureColumn, LogSchema, load_schema
from tf_twostage.errors import InputError

FULL = LogSchema(
  user_id="who",
  item_id="what",
  propensity="p",
  reward="click",
  position=None,
  time="at",
  ranker_score="score",
  split="part",
  user_key="id",
  item_key="id",
  title="name",
  user_features=(FeatureColumn("age", "numeric", column="Age (years)"),),
  item_features=(
    FeatureColumn("tags", "bag", separator=";"),
    FeatureColumn("year", "categorical"),
  ),
  context_features=(FeatureColumn("hour", "numeric"),),
)


@pytest.mark.parametrize("name", ["schema.yaml", "schema.json"])
@pytest.mark.parametrize(
  "schema", [LogSchema(), FULL, PRESETS["open_bandit"]], ids=["native", "full", "ob"]
)
def test_a_schema_survives_its_file(tmp_path, name, schema):
  schema.to_file(tmp_path / name)
  assert LogSchema.from_file(tmp_path / name) == schema


def test_an_empty_file_is_the_native_schema(tmp_path):
  (tmp_path / "schema.yaml").write_text("# nothing to say\n")
  assert LogSchema.from_file(tmp_path / "schema.yaml") == LogSchema()


def test_json_may_say_what_yaml_says(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps({"propensity": None, "user_features": {"a": "bag"}}))
  (tmp_path / "a.yaml").write_text("propensity: null\nuser_features: {a: bag}")
  schema = LogSchema.from_file(tmp_path / "a.json")
  assert schema == LogSchema.from_file(tmp_path / "a.yaml")
  assert schema.propensity is None


def test_broken_json_is_named(tmp_path):
  (tmp_path / "a.json").write_text("{")
  with pytest.raises(InputError, match=r"a.json: not a schema in JSON"):
    LogSchema.from_file(tmp_path / "a.json")


def test_columns_are_listed_by_part():
  assert FULL.columns() == {
    "user_id": "who",
    "item_id": "what",
    "propensity": "p",
    "reward": "click",
    "time": "at",
    "ranker_score": "score",
    "split": "part",
    "age": "Age (years)",
    "hour": "hour",
  }
  assert "age" not in FULL.columns(user_features=False)


def test_the_native_form_of_a_schema_renames_what_the_log_holds():
  native = FULL.native()
  assert native.columns() == {
    name: name
    for name in (
      *("user_id", "item_id", "propensity", "reward", "time", "ranker_score", "split"),
      *("age", "hour"),
    )
  }
  assert (native.position, native.item_key, native.title) == (None, "id", "name")
  assert native.item_features == FULL.item_features
  assert FULL.native(user_features=False).user_features == FULL.user_features


def test_presets_go_by_name_unless_a_file_has_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_schema("open_bandit") == PRESETS["open_bandit"]
  assert load_schema(FULL) is FULL
  (tmp_path / "open_bandit").write_text("reward: mine")
  assert load_schema("open_bandit").reward == "mine"


HOSTILE = {
  "aliases of aliases": "a: &a [x, x]\n"
  + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(12)),
  "deep nesting": "item_id: " + "[" * 50_000,
  "deep blocks": "".join(f"{' ' * i}a:\n" for i in range(2_000)),
  "a mapping that is a list": "user_features: !!map [a]",
  "a truth value that is a word": "reward: !!bool click",
  "a date that is a word": "reward: !!timestamp click",
  "a list as a key": "? [a]\n: b",
  "a long value": "reward: [" + "x, " * 20_000 + "x]",
  "a long key": "x" * 1_000_000 + ": y",
  "a long kind": "user_features: {a: " + "x" * 1_000_000 + "}",
  "a long setting": "user_features: {a: {kind: bag, separator: [" + "x, " * 20_000 + "x]}}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_at_once_in_a_short_message(kind, tmp_path):
  (tmp_path / "a.yaml").write_text(HOSTILE[kind])
  start = time.process_time()
  with pytest.raises(InputError, match=r"a\.yaml") as raised:
    LogSchema.from_file(tmp_path / "a.yaml")
  assert time.process_time() - start < 1
  assert len(str(raised.value)) < 1000


def test_deep_json_is_refused(tmp_path):
  (tmp_path / "a.json").write_text('{"item_id": ' + "[" * 100_000)
  with pytest.raises(InputError, match=r"a\.json: not a schema in JSON"):
    LogSchema.from_file(tmp_path / "a.json")


def test_thousands_of_features_are_read(tmp_path):
  names = [f"f{i}" for i in range(20_000)]
  (tmp_path / "a.json").write_text(json.dumps({"user_features": dict.fromkeys(names, "numeric")}))
  start = time.process_time()
  schema = LogSchema.from_file(tmp_path / "a.json")
  assert [f.name for f in schema.user_features] == names
  assert time.process_time() - start < 2
