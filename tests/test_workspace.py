"""Stages are reused when nothing changed, and never half there."""

import json
import resource

import pytest
import tensorflow as tf

from tf_twostage.errors import RunError
from tf_twostage.workspace import Stages, fingerprint, save_weights, write_json


def counting_build(calls):
  def build(directory):
    calls.append(directory)
    (directory / "result").write_text(str(len(calls)))

  return build


def test_same_inputs_build_once(tmp_path):
  calls = []
  for _ in range(2):
    stage = Stages(tmp_path).get("log", {"seed": 1}, counting_build(calls))
    assert (stage / "result").read_text() == "1"
  assert len(calls) == 1


def test_other_inputs_build_anew_and_keep_the_old(tmp_path):
  calls = []
  first = Stages(tmp_path).get("log", {"seed": 1}, counting_build(calls))
  second = Stages(tmp_path).get("log", {"seed": 2}, counting_build(calls))
  assert first != second
  assert (first / "result").read_text() == "1"
  assert (second / "result").read_text() == "2"


def test_a_build_that_dies_leaves_no_stage(tmp_path):
  def dies(directory):
    (directory / "result").write_text("half")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    Stages(tmp_path).get("log", {}, dies)
  calls = []
  stage = Stages(tmp_path).get("log", {}, counting_build(calls))
  assert (stage / "result").read_text() == "1"
  assert [p.name for p in tmp_path.iterdir()] == [stage.name]


def test_a_stage_records_its_inputs_and_time(tmp_path):
  stages = Stages(tmp_path)
  stage = stages.get("log", {"seed": 1}, lambda directory: None)
  record = json.loads((stage / "stage.json").read_text())
  assert record["inputs"] == {"seed": 1}
  assert stages.timings == {"log": {"seconds": record["seconds"], "reused": False}}


def test_fingerprint_ignores_the_order_of_inputs():
  assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
  assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_write_json_replaces_in_one_step(tmp_path):
  path = tmp_path / "metrics.json"
  write_json(path, {"a": 1})
  write_json(path, {"a": 2})
  assert json.loads(path.read_text()) == {"a": 2}
  assert list(tmp_path.iterdir()) == [path]


def test_weights_that_find_no_room_end_in_one_message(tmp_path):
  model = tf.Module()
  model.weight = tf.Variable(tf.zeros(1000))
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
  try:
    with pytest.raises(RunError, match=r"cannot save to .*What was finished before stays") as e:
      save_weights(model, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert "{{" not in str(e.value)
