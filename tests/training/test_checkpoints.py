"""Checkpoints are complete or absent; a damaged one is passed over."""

import json
import resource

import pytest
import tensorflow as tf

from tf_twostage.errors import RunError
from tf_twostage.training.checkpoints import Checkpoints, restore_weights, save_weights


class State:
  """Two numbers in checkpoints, of which two are kept."""

  def __init__(self, directory, **options):
    self.value = tf.Variable(0.0)
    self.checkpoints = Checkpoints(directory, keep=2, value=self.value, **options)

  def save(self, *numbers):
    for number in numbers:
      self.value.assign(number)
      self.checkpoints.save(number, {"record": number})


def test_the_last_are_kept_and_later_ones_of_an_abandoned_run_are_deleted(tmp_path):
  state = State(tmp_path)
  assert state.checkpoints.newest() is None
  state.save(1, 2, 30)
  assert state.checkpoints.numbers() == [2, 30]
  state.save(10)
  assert {path.name for path in tmp_path.iterdir()} == {"ckpt-2", "ckpt-10"}
  other = State(tmp_path)
  assert other.checkpoints.newest() == (10, {"record": 10})
  other.checkpoints.load(10)
  assert other.value == 10.0
  other.checkpoints.load(2)
  assert other.value == 2.0


def test_a_worker_that_does_not_write_leaves_nothing(tmp_path):
  State(tmp_path, writes=False).save(1)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["state.data-00000-of-00001", "state.index", "record.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog, part, damage):
  state = State(tmp_path)
  state.save(1, 2)
  file = tmp_path / "ckpt-2" / part
  content = file.read_bytes()
  middle = len(content) // 2
  flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
  file.write_bytes({"cut": content[:middle], "flipped": flipped}.get(damage, b""))
  if damage == "missing":
    file.unlink()
  assert state.checkpoints.newest() == (1, {"record": 1})
  (line,) = [record.getMessage() for record in caplog.records]
  assert f"ckpt-2/{part} " in line
  assert line.endswith("trying the one before")
  assert "\n" not in line
  assert {path.name for path in tmp_path.iterdir()} == {"ckpt-1", "ckpt-2.damaged"}


def test_if_none_is_intact_there_is_none(tmp_path, caplog):
  state = State(tmp_path)
  state.save(1)
  (tmp_path / "ckpt-1" / "record.json").write_text("{")
  assert state.checkpoints.newest() is None
  assert "none is left, starting anew" in caplog.text


def test_weights_that_find_no_room_end_in_one_message(tmp_path):
  model, other = tf.Module(), tf.Module()
  model.weight, other.weight = tf.Variable(tf.ones(1000)), tf.Variable(tf.zeros(1000))
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
  try:
    with pytest.raises(RunError, match=r"cannot save to .*Finished stages are kept") as e:
      save_weights(model, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert "{{" not in str(e.value)
  save_weights(model, tmp_path)
  restore_weights(other, tmp_path)
  assert json.dumps(other.weight.numpy().tolist()) == json.dumps([1.0] * 1000)
