"""Inputs that people have: each is read as it is meant, or refused in one message."""

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.commands import ROOT
from tests.data.files import small_log
from tf_twostage import BanditLog
from tf_twostage.data import draft
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.errors import InputError
from tf_twostage.serving import catalogue
from tf_twostage.workspace import to_json


def frame_log(frame=None, **options):
  frame = small_log.frame() if frame is None else frame
  return BanditLog.from_pandas(
    frame, user="visitor", item="product", reward="click", propensity="pscore", **options
  )


@pytest.mark.parametrize("encoding", ["cp437", "latin-1"])
def test_a_terminal_without_the_characters_of_a_column(tmp_path, encoding):
  frame = small_log.frame().rename(columns={"gender": "пол 🎬"})
  path = tmp_path / "log.csv"
  frame.to_csv(path, index=False)
  command = [sys.executable, "-m", "launch.infer_schema", f"--log={path}"]
  environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
  assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0)
  assert rb"\u043f" in done.stdout


@pytest.mark.parametrize("dictionary", [False, True])
def test_ids_that_are_bytes_are_bad_rows(tmp_path, dictionary):
  ids = pa.array([uuid.UUID(int=2**127 + i).bytes for i in range(8)], pa.binary(16))
  table = pa.Table.from_pandas(small_log.frame()).set_column(
    0, "visitor", ids.cast(pa.binary()).dictionary_encode() if dictionary else ids
  )
  _, items, schema = small_log.write(tmp_path)
  pq.write_table(table, tmp_path / "log.parquet")
  with pytest.raises(InputError, match="column 'visitor' must be text in UTF-8; 8 of 8 rows"):
    small_log.read(tmp_path / "log.parquet", items, schema)


def test_a_file_of_a_spreadsheet_in_utf_16_is_one_message(tmp_path):
  path, items, schema = small_log.write(tmp_path)
  path.write_text(path.read_text(), encoding="utf-16")
  with pytest.raises(InputError, match=r"log.csv: line 1 is not UTF-8"):
    small_log.read(path, items, schema)


def test_a_byte_order_mark_and_lines_that_end_in_carriage_returns(tmp_path):
  path, items, schema = small_log.write(tmp_path)
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r"))
  assert len(small_log.read(path, items, schema)) == 8


@pytest.mark.parametrize("name", ["None", "age (years)", "1st", "größe"])
def test_features_that_cannot_be_inputs_are_refused_before_training(name):
  frame = small_log.frame().rename(columns={"gender": name})
  with pytest.raises(InputError, match="rename"):
    frame_log(frame, user_features={name: "categorical"})


def test_rewards_beyond_what_sums_can_hold():
  frame = small_log.frame().assign(click=1e300)
  with pytest.raises(InputError, match=r"'click' must be >= 0 and at most 1e15"):
    frame_log(frame)
  frame = small_log.frame().assign(click=1.0, buy=3.0)
  with pytest.raises(InputError, match="must make a reward of at most 1e15"):
    BanditLog.from_pandas(
      frame, user="visitor", item="product", reward={"click": 1, "buy": 5e14}, propensity="pscore"
    )


@pytest.mark.parametrize(
  "name", ["null", "yes", "1e3", "candidates", "available_from", "slate_id", "- a", "a: b", "#x"]
)
def test_a_draft_loads_whatever_a_column_is_called(tmp_path, name):
  path, items, _ = small_log.write(tmp_path, small_log.frame(16).rename(columns={"gender": name}))
  table = small_log.items().rename(columns={"price": name})
  table.to_csv(items, index=False)
  schema = LogSchema.from_dict(yaml.safe_load(draft.draft(path, items)))
  assert len(small_log.read(path, items, schema)) == 16


def test_infinite_numbers_print_no_warning(tmp_path, recwarn):
  path, items, schema = small_log.write(tmp_path, small_log.frame().assign(slot=np.inf))
  small_log.items().assign(price=[1, np.inf, 2, 3]).to_csv(items, index=False)
  assert "price: numeric" in draft.draft(path, items)
  with pytest.raises(InputError, match="column 'price' must be finite"):
    small_log.read(path, items, schema)
  with pytest.raises(InputError, match="column 'slot' must be a whole number"):
    frame_log(small_log.frame().assign(slot=np.inf), position="slot")
  assert not recwarn.list


@pytest.mark.parametrize("column", ["name", "genres"])
def test_memory_is_in_proportion_to_the_text(tmp_path, column):
  table = pd.DataFrame({"product": [f"p{i}" for i in range(3000)]})
  table = table.assign(name="a", genres="b", price=1.0)
  table.loc[7, column] = "x" * 20_000
  path, items, schema = small_log.write(tmp_path)
  table.to_csv(items, index=False)
  tracemalloc.start()
  small_log.read(path, items, schema)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 20e6  # 3,000 x 20,000 characters are 240 MB


def test_json_has_no_nan_of_any_type():
  values = {
    "a": np.float32("nan"),
    "b": [np.float64("inf"), np.array([1.0, np.nan])[1]],
    "c": np.float32(0.5),
  }
  assert json.loads(to_json(values)) == {"a": None, "b": [None, None], "c": 0.5}


def test_nested_values_of_parquet(tmp_path):
  path, items, schema = small_log.write(tmp_path)
  table = pa.Table.from_pandas(small_log.items())
  pairs = pa.array([["a", "b"], ["a", "c"], ["b", "b"], ["c", "a"]], pa.list_(pa.string(), 2))
  at = table.column_names.index("genres")
  parquet = items.with_suffix(".parquet")
  pq.write_table(table.set_column(at, "genres", pairs), parquet)
  genres = small_log.read(path, parquet, schema).schema.item[1]
  assert genres.vocabulary == ("a", "b", "c")
  at = table.column_names.index("name")
  structs = pa.array([{"en": "Zero"}] * 4, pa.struct([("en", pa.string())]))
  pq.write_table(table.set_column(at, "name", structs), parquet)
  with pytest.raises(InputError, match="column 'name' must hold one value a row, not lists"):
    small_log.read(path, parquet, schema)


@pytest.mark.parametrize(
  ("content", "found"),
  [(b"p0\r\n\r\np1\r\n", ["p0", "p1"]), ("p0\np1\n".encode("utf-16"), None)],
)
def test_lists_of_items_to_remove_of_other_systems(tmp_path, content, found):
  path = tmp_path / "gone.txt"
  path.write_bytes(content)
  if found is None:
    with pytest.raises(InputError, match="write UTF-8 text with an id per line"):
      catalogue.read_removed(path)
  else:
    assert catalogue.read_removed(path) == found


@pytest.mark.parametrize("column", ["visitor", "gender"])
def test_a_nul_at_the_end_of_a_cell_is_a_bad_row(column):
  frame = small_log.frame()
  frame.loc[5, column] += "\0"
  with pytest.raises(InputError, match=f"column '{column}' must not contain the character NUL"):
    frame_log(frame, user_features={"gender": "categorical"})


@pytest.mark.parametrize("whole", [0, 1])
def test_a_cut_gzip_file_of_items_is_refused(tmp_path, whole):
  """Also where it consists of several members, and the last of them is cut."""
  path, items, schema = small_log.write(tmp_path)
  lines = items.read_bytes().splitlines(keepends=True)
  parts = [gzip.compress(b"".join(lines[:3])), gzip.compress(b"".join(lines[3:]))]
  zipped = items.with_suffix(".csv.gz")
  zipped.write_bytes(b"".join(parts[:whole]) + parts[whole][:-9])
  with pytest.raises(InputError, match=r"items.csv.gz: truncated or corrupt gzip"):
    small_log.read(path, zipped, schema)
