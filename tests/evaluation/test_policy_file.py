"""Policies in files: good ones are read, bad ones end in one message."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest

from tf_twostage.data.rows import LogRows
from tf_twostage.errors import InputError
from tf_twostage.evaluation import policy_file
from tf_twostage.evaluation.evaluation_log import EvaluationLog

IDS = np.array(["a", "b", "c"])
EVALUATION = EvaluationLog(
  LogRows(
    user_index=np.arange(4, dtype=np.int32),
    action=np.array([0, 1, 2, 0], np.int32),
    propensity=np.full(4, 0.5, np.float32),
    reward=np.ones(4, np.float32),
  ),
  3,
  "log",
)
SHELVES = dataclasses.replace(
  EVALUATION, rows=dataclasses.replace(EVALUATION.rows, position=np.array([0, 1, 1, 0], np.int32))
)
LISTED = pd.DataFrame({"item_id": ["c", "a"], "probability": [0.75, 0.25]})
BY_POSITION = pd.DataFrame(
  {"item_id": ["a", "b", "c"], "probability": [1.0, 0.5, 0.5], "position": [0, 1, 1]}
)
TABLE = np.array([[0.2, 0.3, 0.5], [1, 0, 0], [0, 1, 0], [0.5, 0.25, 0.25]])
_BUFFER = io.BytesIO()
np.save(_BUFFER, TABLE)
NPY = _BUFFER.getvalue()


def written(directory, content, suffix=".csv"):
  path = directory / f"policy{suffix}"
  if isinstance(content, pd.DataFrame):
    content.to_csv(path, index=False) if suffix == ".csv" else content.to_parquet(path)
  elif isinstance(content, dict):
    np.savez(path, **content)
  elif isinstance(content, np.ndarray):
    np.save(path, content)
  else:
    path.write_bytes(content)
  return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_list_is_the_same_for_every_row_and_lacks_what_it_does_not_name(tmp_path, suffix):
  policy = policy_file.read(written(tmp_path, LISTED, suffix), EVALUATION, IDS)
  np.testing.assert_array_equal(policy.probabilities(np.array([3, 0])), [[0.25, 0, 0.75]] * 2)
  assert policy.name == f"policy{suffix}"
  assert not policy.by_row


def test_a_list_by_position_answers_by_the_position_of_the_row(tmp_path):
  policy = policy_file.read(written(tmp_path, BY_POSITION), SHELVES, IDS)
  np.testing.assert_array_equal(
    policy.probabilities(np.array([1, 0, 2])), [[0, 0.5, 0.5], [1, 0, 0], [0, 0.5, 0.5]]
  )
  assert policy.by_row


@pytest.mark.parametrize(
  ("suffix", "content"), [(".npy", TABLE.astype(np.float32)), (".npz", {"anything": TABLE})]
)
def test_an_array_answers_row_by_row(tmp_path, suffix, content):
  policy = policy_file.read(written(tmp_path, content, suffix), EVALUATION, IDS)
  rows = np.array([3, 0])
  np.testing.assert_allclose(policy.probabilities(rows), TABLE[rows], rtol=1e-6)
  assert policy.by_row


@pytest.mark.parametrize(
  ("content", "suffix", "words"),
  [
    (LISTED.assign(item_id=["c", "z"]), ".csv", "'item_id' must name a known item"),
    (LISTED.assign(probability=[1.25, -0.25]), ".csv", r"'probability' must lie in \[0, 1\]"),
    (LISTED.assign(probability=[0.75, np.nan]), ".csv", "'probability'"),
    (LISTED.assign(probability=[0.75, 0.5]), ".csv", "sum to 1.25, not to 1"),
    (LISTED.drop(columns="probability"), ".csv", r"missing column\(s\) \['probability'\]"),
    (LISTED.drop(columns="item_id"), ".parquet", r"missing column\(s\) \['item_id'\]"),
    (LISTED.assign(item_id="a"), ".csv", "repeated"),
    (LISTED[:0], ".csv", "no rows"),
    (BY_POSITION, ".csv", "the log has none"),
    (TABLE[:3], ".npy", r"shape \(3, 3\), expected floats of shape \(4, 3\)"),
    (TABLE[:, :2], ".npy", r"shape \(4, 2\), expected"),
    (np.eye(4, 3, dtype=int), ".npy", "holds int64"),
    (TABLE - [0.5, 0, -0.5], ".npy", "must be >= 0"),
    (TABLE * np.nan, ".npy", "must be >= 0"),
    (TABLE * [[1], [1], [2], [1]], ".npy", r"must sum to 1; 1 of 4 rows .*row 2, value '2.0'\)"),
    ({"a": TABLE, "b": TABLE}, ".npz", r"holds the arrays \['a', 'b'\]"),
    (b"not an array", ".npy", "not a readable array"),
    (NPY.replace(b"{'descr'", b"{('descr'"), ".npy", "not a readable array"),
    (NPY.replace(b"(4, 3)", b"(4,9**99)"), ".npy", "not a readable array"),
    (TABLE.astype(np.float16), ".npy", "float16 holds three digits"),
    (b"not an archive", ".npz", "not a readable array"),
    (b"item_id,probability\na,1\n", ".md", "no bandit log|no such"),
  ],
)
def test_a_bad_file_ends_in_one_message(tmp_path, content, suffix, words):
  with pytest.raises(InputError, match=words) as error:
    policy_file.read(written(tmp_path, content, suffix), EVALUATION, IDS)
  assert str(tmp_path) in str(error.value)


def test_a_position_of_the_log_that_is_not_listed_is_named(tmp_path):
  path = written(tmp_path, BY_POSITION[:1])
  with pytest.raises(InputError, match=r"policy.csv.*knows the positions \[0\].*has 1"):
    policy_file.read(path, SHELVES, IDS)


def test_no_file_is_said(tmp_path):
  for name in ("none.csv", "none.npy"):
    with pytest.raises(InputError, match=name):
      policy_file.read(tmp_path / name, EVALUATION, IDS)
