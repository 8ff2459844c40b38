"""Every kind of bad input: one message with file, place, column and remedy, and no stack trace."""

import gzip
import re
import time

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.data.files import small_log
from tf_twostage.data import policy_table
from tf_twostage.data.files import shards
from tf_twostage.data.files.shards import convert
from tf_twostage.errors import InputError


def csv(**cells):
  """A log whose row 5 (line 7) has these cells."""
  frame = small_log.frame().astype(object)
  for column, value in cells.items():
    frame.loc[5, column] = value
  return frame


def lines(change):
  """The bytes of a log after a change to its list of lines."""
  text = small_log.frame().to_csv(index=False).splitlines(keepends=True)
  return "".join(change(text)).encode("utf-8", "surrogateescape")


PLACE = r"log\.csv: column '{}' {}; 1 of 8 rows break this \(first: line 7, row 5, value {}\); \w"
ROWS = {  # kind: log, message
  "propensity of 0": (csv(pscore=0), PLACE.format("pscore", r"must lie in \(0, 1\]", "'0'")),
  "negative propensity": (csv(pscore=-1), PLACE.format("pscore", "must lie in .*", "'-1'")),
  "propensity above 1": (csv(pscore=1.5), PLACE.format("pscore", "must lie in .*", "'1.5'")),
  "propensity NaN": (csv(pscore="nan"), PLACE.format("pscore", "must lie in .*", "'nan'")),
  "propensity below float32": (csv(pscore=1e-40), PLACE.format("pscore", ".*", "'1e-40'")),
  "propensity is text": (csv(pscore="high"), PLACE.format("pscore", "must hold numbers", "'high'")),
  "propensity is empty": (csv(pscore=""), PLACE.format("pscore", "must hold numbers", "''")),
  "decimal comma": (csv(pscore="0,5"), PLACE.format("pscore", "must hold numbers", "'0,5'")),
  "negative reward": (
    csv(click=-1),
    PLACE.format("click", "must be >= 0 and at most 1e15", "'-1'"),
  ),
  "huge reward": (
    csv(click=3e38),
    PLACE.format("click", "must be >= 0 and at most 1e15", r"'3e\+38'"),
  ),
  "reward NaN": (csv(click="NaN"), PLACE.format("click", "must be >= 0 and at most 1e15", "'NaN'")),
  "reward infinite": (csv(click="inf"), PLACE.format("click", "must be >= 0 .*", "'inf'")),
  "reward is text": (csv(click="yes"), PLACE.format("click", "must hold numbers", "'yes'")),
  "fractional position": (csv(slot=0.5), PLACE.format("slot", "must be a whole .*", "'0.5'")),
  "negative position": (csv(slot=-2), PLACE.format("slot", "must be a whole .*", "'-2'")),
  "a time beyond the year 9999": (
    csv(at="12024-05-01T12:00:00Z"),
    PLACE.format("at", "must be a time", "'12024.*'"),
  ),
  "context near the largest float": (
    csv(hour=-1.7e308),
    PLACE.format("hour", "must be finite, within -1e30 and 1e30", r"'-1.7e\+308'"),
  ),
  "bad time": (csv(at="yesterday"), PLACE.format("at", "must be a time", "'yesterday'")),
  "a number among dates": (
    csv(at="1714564800.5"),
    PLACE.format("at", "must be a time", "'1714.*'"),
  ),
  "context is text": (csv(hour="noon"), PLACE.format("hour", "must hold numbers", "'noon'")),
  "context infinite": (
    csv(hour="-inf"),
    PLACE.format("hour", "must be finite, within -1e30 and 1e30", "'-inf'"),
  ),
  "blank user": (csv(visitor=""), PLACE.format("visitor", "must not be blank", "''")),
  "blank item": (csv(product=""), PLACE.format("product", "must not be blank", "''")),
  "unknown item": (csv(product="p77"), PLACE.format("product", ".*unknown item.*", "'p77'")),
  "user of two kinds": (csv(gender="F"), PLACE.format("gender", "must be the same .*", "'F'")),
  "short row": (
    lines(lambda t: [*t[:6], t[6].rsplit(",", 2)[0] + "\n", *t[7:]]),
    r"log.csv: a row must have 8 fields.*; 1 of 8 .*line 7, row 5, value '6 fields'",
  ),
  "long row": (
    lines(lambda t: [*t[:6], "x," + t[6], *t[7:]]),
    r"log.csv: a row must have 8 fields.*; 1 of 8 .*line 7, row 5, value '9 fields'",
  ),
  "short row, not UTF-8": (
    lines(lambda t: [*t[:6], "v\udcff\n", *t[7:]]),
    r"log.csv: a row must have 8 fields.*; 1 of 8 .*line 7, row 5, value '1 fields'",
  ),
  "long row, not UTF-8, after Cyrillic": (
    lines(lambda t: [*t[:3], t[3].replace("v2", "ж"), *t[4:6], "\udcff," + t[6], *t[7:]]),
    r"log.csv: a row must have 8 fields.*; 1 of 8 .*line 7, row 5, value '9 fields'",
  ),
  "cut off in the last row": (
    lines(lambda t: [*t[:-1], t[-1][:12]]),
    r"log.csv: a row must have 8 fields.*; 1 of 8 .*line 9, row 7",
  ),
  "row cut by a carriage return": (
    lines(lambda t: [*t[:6], t[6][:-1] + "\r", t[7][:5] + "\n", *t[8:]]),
    r"log.csv: a row must have 8 fields.*; 1 of 8 .*row 6, value '2 fields'",
  ),
  "not UTF-8, among quotes": (
    lines(lambda t: [*t[:5], t[5].replace("p1", '"p1"'), t[6].replace("v1", "v\udcff"), *t[7:]]),
    r"log.csv: column 'visitor' must be text in UTF-8; 1 of 8 .*line 7, row 5",
  ),
  "not UTF-8": (
    lines(lambda t: [*t[:6], t[6].replace("v1", "v\udcff"), *t[7:]]),
    r"log.csv: column 'visitor' must be text in UTF-8; 1 of 8 .*line 7, row 5, value 'v\\\\xff",
  ),
}
REMEDIES = {
  "a number": (csv(hour="noon"), "write plain numbers such as 0.5$"),
  "a date": (csv(hour="2024-05-01"), "write plain numbers such as 0.5, and dates as seconds$"),
}
FILES = {  # kind: log, message
  "empty file": (b"", r"log.csv: the file is empty, .* it needs a header"),
  "blank lines only": (b"\n\n\n", r"log.csv: the file is empty"),
  "header only": (lines(lambda t: t[:1]), r"log.csv: the log has no rows; log some traffic"),
  "duplicate column": (
    lines(lambda t: [t[0].replace("hour", "click"), *t[1:]]).replace(b"gender", b"hour"),
    r"log.csv: .*column",
  ),
  "header not UTF-8": (b"visitor,\xff\n", r"log.csv: line 1 is not UTF-8"),
  "colons": (
    lines(lambda t: [line.replace(",", ":") for line in t]),
    r"log.csv: missing column\(s\) .* found 'visitor:product",
  ),
  "quote not closed": (
    lines(lambda t: [*t[:6], '"' + t[6], *t[7:]]) + b"x" * 200_000,
    r"log.csv: line 7 cannot be split into fields .*; close its quotes",
  ),
  "another format's name": (b"PK\x03\x04\xff", r"log.csv: .*"),
}
FILES |= {
  f"missing column {column}": (
    small_log.frame().drop(columns=column),
    rf"log.csv: missing column\(s\) \['{column}'\]; found '.*'; mend the header, or say .* which",
  )
  for column in small_log.frame()
}


def check(tmp_path, log, message, **options):
  path, items, schema = small_log.write(tmp_path, log)
  with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path))}/{message}") as raised:
    small_log.read(path, items, schema, **options)
  assert "\n" not in str(raised.value)
  assert raised.value.__cause__ is None  # `raise ... from None`: nothing else is shown


@pytest.mark.parametrize("kind", ROWS)
def test_a_bad_row_is_named_or_skipped(tmp_path, kind):
  check(tmp_path, *ROWS[kind])
  path, items, schema = small_log.write(tmp_path, ROWS[kind][0])
  data = small_log.read(path, items, schema, on_bad_rows="skip")
  assert len(data.rows) == 7
  assert data.notes == ("1 of 8 rows are bad and were left out",)


@pytest.mark.parametrize("kind", REMEDIES)
def test_dates_are_spoken_of_where_there_are_some(tmp_path, kind):
  log, remedy = REMEDIES[kind]
  path, items, schema = small_log.write(tmp_path, log)
  with pytest.raises(InputError, match=remedy):
    small_log.read(path, items, schema)


@pytest.mark.parametrize("kind", FILES)
def test_an_unreadable_log_is_named(tmp_path, kind):
  check(tmp_path, *FILES[kind], on_bad_rows="skip")


def truncated(name):
  def write(directory, log=None):
    path = small_log.write(directory, small_log.frame(2000), name=name)[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path

  return write


def native(directory, **options):
  path, _, schema = small_log.write(directory, small_log.frame(40))
  convert(path, directory / "shards", schema, num_shards=2, **options)
  return directory / "shards"


def flipped(directory):
  shard = native(directory) / shards.names(2)[1]
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 0xFF
  shard.write_bytes(content)
  return shard.parent


def without_a_shard(directory):
  (native(directory) / shards.names(2)[0]).unlink()
  return directory / "shards"


def two_logs(directory):
  (native(directory) / shards.names(3)[0]).write_bytes(b"")
  return directory / "shards"


def shortened(directory):
  (native(directory) / shards.names(2)[1]).write_bytes(b"")
  return directory / "shards"


def no_examples(directory):
  directory.mkdir()
  with tf.io.TFRecordWriter(str(directory / "log.tfrecord")) as writer:
    writer.write(b"\xff not an example")
  return directory / "log.tfrecord"


def two_formats(directory):
  directory = small_log.write(directory / "logs")[0].parent
  (directory / "items.csv").unlink()
  small_log.frame().to_parquet(directory / "more.parquet")
  return directory


def only_other_files(directory):
  directory.mkdir(exist_ok=True)
  (directory / "readme.md").write_text("x")
  return directory


def plain_text_called_gz(directory):
  return small_log.write(directory, b"visitor,product\n", name="log.csv.gz")[0]


def parquet_of_text(directory):
  return small_log.write(directory, b"visitor,product\n", name="log.parquet")[0]


PATHS = {
  "truncated gzip": (truncated("log.csv.gz"), r"log.csv.gz: truncated or corrupt gzip"),
  "truncated Parquet": (truncated("log.parquet"), r"log.parquet: not a readable Parquet file"),
  "CSV called gzip": (plain_text_called_gz, r"log.csv.gz: truncated or corrupt gzip"),
  "text called Parquet": (parquet_of_text, r"log.parquet: not a readable Parquet file"),
  "corrupt shard": (flipped, r"shards/log-00001-of-00002.tfrecord: truncated or corrupt at row 10"),
  "missing shard": (without_a_shard, r"shards: 1 of 2 shards are missing \(first: log-00000"),
  "shards of two logs": (two_logs, r"shards: (2 of 3 shards are missing|shards of several logs)"),
  "shard with fewer rows": (shortened, r"shards: the shards hold 20 rows, but log.json says 40"),
  "records that are no examples": (no_examples, r"log.tfrecord: .*"),
  "two formats in a directory": (two_formats, r"logs: files of several formats lie together"),
  "directory without a log": (only_other_files, r": no log in it, neither shards"),
  "no such file": (lambda d: d / "nowhere.csv", r"nowhere.csv: no such file"),
  "pattern without a match": (lambda d: d / "*.parquet", r"\*.parquet: no such file, and none"),
  "unknown format": (
    lambda d: only_other_files(d) / "readme.md",
    r"readme.md: no bandit log; give .csv",
  ),
}


@pytest.mark.parametrize("kind", PATHS)
def test_unreadable_files_are_named(tmp_path, kind):
  spoilt, message = PATHS[kind]
  root = tmp_path / "it"
  log = spoilt(root)
  _, items, schema = small_log.write(tmp_path / "good")
  if (root / "shards" / "schema.yaml").exists():
    schema = root / "shards" / "schema.yaml"
  start = f"^{re.escape(str(root))}" + ("" if message.startswith(":") else "/")
  with pytest.raises(InputError, match=start + message):
    small_log.read(log, items, schema)


SCHEMAS = {
  "not YAML": ("user_id: [", r"not a schema in YAML \(.*\); write `role: column`"),
  "a list": ("- user_id", r"holds list, not keys with values"),
  "unknown key": ("propensityy: p", r"unknown key 'propensityy'; did you mean 'propensity'\?"),
  "key twice": ("reward: a\nreward: b", r"not a schema in YAML \(key 'reward' is there twice\)"),
  "unknown kind": ("user_features: {age: number}", r"user_features: .*unknown kind 'number'"),
  "kind missing": ("user_features: {age: {column: a}}", r"user_features: 'age' needs a kind"),
  "unknown setting": ("item_features: {a: {kind: bag, sep: x}}", r"item_features: 'a' has sep"),
  "features as a list": ("user_features: [age]", r"user_features: expected `name: kind` lines"),
  "column is a number": ("reward: 3", r"reward: expected the name of a column, got 3"),
  "no item": ("item_id: null", r"item_id: every log needs it"),
  "nobody": ("user_id: null", r"user_id: null means that combinations of user features"),
  "column in two parts": ("reward: a\ntime: a", r"column 'a' has two roles"),
  "feature twice": (
    "user_features: {a: numeric}\nitem_features: {a: numeric}",
    r"feature 'a' is listed twice",
  ),
  "context of text": (
    "context_features: {a: categorical}",
    r"context_features: 'a' is categorical",
  ),
  "name taken": ("context_features: {reward: numeric}", r"context_features: .*the name is taken"),
  "no separator": ("item_features: {a: {kind: bag, separator: ''}}", r"item_features: .*separator"),
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_bad_schema_is_named_with_its_key(tmp_path, kind):
  text, message = SCHEMAS[kind]
  path, items, schema = small_log.write(tmp_path, schema=text)
  with pytest.raises(InputError, match=f"^{re.escape(str(schema))}: {message}"):
    small_log.read(path, items, schema)


def test_a_missing_schema_names_the_command_that_drafts_one(tmp_path):
  path, items, _ = small_log.write(tmp_path)
  with pytest.raises(InputError, match=r"none.yaml: .*python -m launch.infer_schema"):
    small_log.read(path, items, tmp_path / "none.yaml")


ITEMS = {
  "duplicate item": (
    lambda f: pd.concat([f, f[1:2]]),
    r"items.csv: column 'product' must not repeat; 1 of 5 .*line 6, row 4, value 'p1'\); keep one",
  ),
  "blank item": (lambda f: f.replace("p1", ""), r"items.csv: column 'product' must not be blank"),
  "missing feature": (
    lambda f: f.drop(columns="price"),
    r"items.csv: missing column\(s\) \['price'\]",
  ),
  "missing id": (
    lambda f: f.drop(columns="product"),
    r"items.csv: missing column\(s\) \['product'\].* which column is the id \(item_key or",
  ),
  "text as number": (
    lambda f: f.assign(price=["1", "?", "2", "3"]),
    r"items.csv: column 'price' must hold numbers; 1 of 4 .*line 3, row 1, value '\?'",
  ),
  "no items": (lambda f: f[:0], r"items.csv: the file has no rows"),
  "empty bag": (lambda f: f.assign(genres=""), r"column 'genres' holds no value at all"),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_a_bad_items_file_is_named(tmp_path, kind):
  change, message = ITEMS[kind]
  path, items, schema = small_log.write(tmp_path)
  change(small_log.items()).to_csv(items, index=False)
  with pytest.raises(InputError, match=message):
    small_log.read(path, items, schema, on_bad_rows="skip")


def test_an_unknown_user_is_named(tmp_path):
  path, items, schema = small_log.write(tmp_path)
  users = pd.DataFrame({"visitor": ["v0", "v1", "v2"], "gender": ["F", "M", "F"]})
  users.to_csv(tmp_path / "users.csv", index=False)
  message = r"column 'visitor' .*unknown user.*users.csv; 2 of 8 .*line 5, row 3, value 'v3'"
  with pytest.raises(InputError, match=message):
    small_log.read(path, items, schema, tmp_path / "users.csv")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("item_id,probability\np0,0.5\n", r"sum to 0.5, not to 1"),
    ("item_id,probability\np0,1.5\n", r"'probability' must lie in \[0, 1\]; 1 of 1 .*line 2"),
    ("item_id,probability\np77,1\n", r"'item_id' must name a known item; 1 of 1 .*'p77'"),
    ("item_id,probability\np0,0.5\np0,0.5\n", r"an item is repeated"),
    ("item_id,position,probability\np0,0,1\np1,1,0.9\n", r"of position 1 sum to 0.9"),
    ("item,probability\np0,1\n", r"missing column\(s\) \['item_id'\]"),
    ("item_id,probability\n", r"the policy has no rows"),
  ],
)
def test_a_bad_policy_is_named(tmp_path, text, message):
  path = tmp_path / "policy.csv"
  path.write_text(text)
  with pytest.raises(InputError, match=f"policy.csv: .*{message}"):
    policy_table.read(path, np.array(["p0", "p1"]))


def test_an_unwritable_directory_is_named(tmp_path):
  path, _, schema = small_log.write(tmp_path)
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"file/log: cannot be written \(Not a directory\)"):
    convert(path, tmp_path / "file" / "log", schema)


def test_every_kind_of_fault_is_counted_and_its_first_row_shown(tmp_path):
  frame = csv(pscore=2, click=-1)
  frame.loc[7, "pscore"] = 0
  frame.loc[1, "product"] = "p77"
  path, items, schema = small_log.write(tmp_path, frame)
  with pytest.raises(InputError) as raised:
    small_log.read(path, items, schema)
  summary, *faults = str(raised.value).splitlines()
  assert summary == "3 of 8 rows are bad, in 3 ways"
  assert [re.search(r"column '(\w+)'.*; (\d) of 8.*line (\d)", f).groups() for f in faults] == [
    ("product", "1", "3"),
    ("pscore", "2", "7"),
    ("click", "1", "7"),
  ]


def test_a_log_of_bad_rows_only_cannot_be_skipped(tmp_path):
  path, items, schema = small_log.write(tmp_path, small_log.frame().assign(pscore=0))
  with pytest.raises(InputError, match="8 of 8 rows break this"):
    small_log.read(path, items, schema, on_bad_rows="skip")


def test_bad_rows_in_a_large_log_are_found_fast(tmp_path):
  n = 300_000
  rows = "\n".join(f"v{i % 4},p{i % 3},0.5,0,0,2024-05-01T12:00:00Z,F,1" for i in range(n))
  head = ",".join(small_log.frame())
  path, items, schema = small_log.write(tmp_path, f"{head}\n{rows}\nv1,p1,oops,0\n".encode())
  start = time.perf_counter()
  with pytest.raises(InputError, match=rf"1 of {n + 1} rows .*line {n + 2}, row {n}, value '4 f"):
    small_log.read(path, items, schema)
  assert time.perf_counter() - start < 5  # half a second on an idle machine


def test_lines_are_counted_past_quotes_blank_lines_and_broken_rows(tmp_path):
  text = small_log.frame().to_csv(index=False).splitlines()
  text[2] = text[2].replace("v1", '"v\n1"')
  text.insert(4, "")
  text.insert(5, "broken")
  text[-1] = text[-1].replace("0.25", "7")
  path, items, schema = small_log.write(tmp_path, "\r\n".join(text).encode())
  with pytest.raises(InputError) as raised:
    small_log.read(path, items, schema)
  assert "line 7, row 3, value '1 fields'" in str(raised.value)
  assert "line 12, row 8, value '7'" in str(raised.value)


def test_a_gzipped_log_names_lines_too(tmp_path):
  text = csv(pscore=0).to_csv(index=False).encode()
  path, items, schema = small_log.write(tmp_path, gzip.compress(text), name="log.csv.gz")
  with pytest.raises(InputError, match=r"log.csv.gz: .*line 7, row 5"):
    small_log.read(path, items, schema)
