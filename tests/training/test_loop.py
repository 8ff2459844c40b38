"""The training loop: epochs, selection, checkpoints, resuming, signals, TensorBoard."""

import functools
import json
import logging
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.histories import timeless
from tf_twostage import losses
from tf_twostage.config import CheckpointConfig, EncoderConfig, FitConfig
from tf_twostage.data.rows import LogRows
from tf_twostage.data.sets import make_synthetic
from tf_twostage.errors import RunError
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.models.support import SampledSupport
from tf_twostage.training import loop
from tf_twostage.training.signals import Stopped
from tf_twostage.training.tensorboard import HEALTH, Monitor

DATA = make_synthetic(num_users=20, num_items=15, num_ratings=200)
TABLES = EncodedTables.encode(DATA.schema, DATA.users, DATA.items)
ROWS = 64


def make_log():
  rng = np.random.default_rng(0)
  return LogRows(
    user_index=rng.integers(20, size=ROWS).astype(np.int32),
    action=rng.integers(15, size=ROWS).astype(np.int32),
    propensity=rng.uniform(0.05, 0.5, size=ROWS).astype(np.float32),
    reward=np.ones(ROWS, np.float32),
  )


def make_model(loss="cross_entropy", *, hard_candidates=0, compiled=False, **options):
  tf.keras.utils.set_random_seed(1)
  towers = TwoTower(TABLES, EncoderConfig(), l2=1e-4, sparse_l2=hard_candidates > 0)

  def ranker(batch, items=None):
    return tf.zeros([tf.shape(batch["action"])[0], 15 if items is None else items.shape[0]])

  support = None
  if hard_candidates:
    support = SampledSupport(
      losses.DRAWS["uniform"](np.zeros(15)),
      num_items=15,
      size=24,
      seed=1,
      hard_candidates=hard_candidates,
      hard_refresh_steps=5,  # and checkpoints come every third and fourth step
    )
  model = CandidateGenerator(towers, losses.get(loss, **options), ranker, support)
  if compiled:
    model.compile_loss()
  return model


class Evaluation:
  """Scores that follow a given course; counts its calls."""

  def __init__(self, course):
    self.course = list(course)
    self.calls = 0

  def __call__(self):
    value = self.course[self.calls]
    self.calls += 1
    stages = {stage: {"precision@10": value} for stage in ("one_stage", "two_stage")}
    return {"validation": stages, "test": stages}


def select(scores):
  return scores["validation"]["two_stage"]["precision@10"]


def train(directory, epochs, evaluation=None, model=None, learning_rate=0.05, **options):
  model = model or make_model()
  log = make_log()
  history = loop.fit(
    model,
    functools.partial(log.batches, TABLES.users, seed=3),
    FitConfig(epochs=epochs, batch_size=16, learning_rate=learning_rate),
    rows=len(log),
    name="generator",
    evaluate=evaluation or Evaluation(range(epochs)),
    select=select,
    directory=directory,
    weights=model.towers,
    monitor=Monitor(directory / "events", {"loss": "cross_entropy", "epochs": epochs}),
    **options,
  )
  return model, history


def weights(model):
  return np.concatenate([w.ravel() for w in model.towers.get_weights()])


# What the other tests compare with and begin from


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Directory, weights and history of an uninterrupted run of three epochs of four steps."""
  directory = tmp_path_factory.mktemp("whole")
  model, history = train(directory, 3)
  return directory, weights(model), history


def assert_as_whole(whole, model, history):
  np.testing.assert_array_equal(weights(model), whole[1])
  assert timeless(history) == timeless(whole[2])


class Killed(BaseException):
  """Leaves no time to save anything."""


def die():
  raise Killed


def after_steps(model, steps, act):
  """Calls `act` once `model` has trained so many steps in this process."""
  make = model.make_train_function

  def make_and_count():
    step, calls = make(), iter(range(1, 1000))

    def counted(batches):
      logs = step(batches)
      if next(calls) == steps:
        act()
      return logs

    return counted

  model.make_train_function = make_and_count
  return model


EVERY_THIRD = CheckpointConfig(checkpoint_every_steps=3)  # of four in an epoch


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
  """A run killed in its seventh step, with checkpoints of steps 4 and 6."""
  directory = tmp_path_factory.mktemp("killed")
  with pytest.raises(Killed):
    train(directory, 3, model=after_steps(make_model(), 7, die), checkpoints=EVERY_THIRD)
  return directory


@pytest.fixture
def cut(killed, tmp_path):
  return shutil.copytree(killed, tmp_path / "cut")


# Epochs and selection


def test_loss_falls_and_the_same_seed_gives_the_same_run(whole, tmp_path):
  _, _, history = whole
  assert [entry["epoch"] for entry in history] == [1, 2, 3]
  assert history[-1]["training"]["mean_loss"] < history[0]["training"]["mean_loss"]
  assert_as_whole(whole, *train(tmp_path, 3))


def test_a_small_model_needs_no_options_and_learns_what_keras_fits(capsys):
  settings = FitConfig(epochs=2, batch_size=16)

  def batches():
    return make_log().batches(TABLES.users, batch_size=16, seed=3)

  by_keras = make_model()
  by_keras.compile(optimizer=loop.make_optimizer(settings))
  by_keras.fit(batches(), epochs=2, steps_per_epoch=ROWS // 16, verbose=0)
  model = make_model()
  history = loop.fit(model, batches(), settings, rows=ROWS, name="small model")
  np.testing.assert_array_equal(weights(model), weights(by_keras))
  assert [set(entry) for entry in history] == [{"epoch", "training", "input_wait_share"}] * 2
  assert "small model:" in capsys.readouterr().err


def test_the_weights_of_the_best_epoch_are_restored(tmp_path):
  model, seen, evaluation = make_model(), [], Evaluation([0, 2, 1])

  def evaluate():
    seen.append(weights(model))
    return evaluation()

  _, history = train(tmp_path, 3, evaluate, model)
  assert loop.best_epoch(history)["epoch"] == 2
  np.testing.assert_array_equal(weights(model), seen[1])
  other = make_model()
  loop.restore_best(other.towers, tmp_path, history)
  np.testing.assert_array_equal(weights(other), seen[1])


def test_a_finished_run_is_not_trained_again(whole, tmp_path, capsys, caplog):
  caplog.set_level(logging.INFO, "tf_twostage")
  directory = shutil.copytree(whole[0], tmp_path / "copy")
  assert loop.finished_history(directory, 3) == whole[2]
  assert loop.finished_history(directory, 4) is None
  assert loop.finished_history(tmp_path, 3) is None
  (directory / "history.json").write_text("[{")  # for people: the checkpoint holds it, too
  assert loop.finished_history(directory, 3) == whole[2]
  assert_as_whole(whole, *train(directory, 3, Evaluation([])))
  assert json.loads((directory / "history.json").read_text()) == whole[2]
  assert "generator:" not in capsys.readouterr().err
  assert f"generator: finished before; delete {directory} to train it again" in caplog.text


def test_a_run_whose_best_weights_are_damaged_is_trained_again(whole, tmp_path, caplog):
  directory = shutil.copytree(whole[0], tmp_path / "copy")
  best = loop.best_epoch(whole[2])["epoch"]
  file = directory / "best" / f"ckpt-{best}" / "state.data-00000-of-00001"
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  assert loop.finished_history(directory, 3) is None
  assert f"{file} was changed after it was written" in caplog.text
  assert_as_whole(whole, *train(directory, 3))
  assert loop.finished_history(directory, 3) is not None


# Interrupted runs


@pytest.mark.parametrize(
  ("loss", "options"),
  [
    ("cross_entropy", {}),
    ("ips", {"compiled": True}),
    ("two_stage_ips", {"sampling": "exact", "slate_size": 4, "hard_candidates": 3}),
    ("two_stage_ips", {"sampling": "systematic", "num_slates": 5, "slate_size": 4, "seed": 1}),
  ],
)
def test_a_run_killed_within_an_epoch_resumes_bit_for_bit(tmp_path, caplog, loss, options, whole):
  caplog.set_level(logging.INFO, "tf_twostage")
  if loss != "cross_entropy":
    model, history = train(tmp_path / "whole", 3, model=make_model(loss, **options))
    whole = None, weights(model), history
  model = after_steps(make_model(loss, **options), 8, die)
  with pytest.raises(Killed):
    train(tmp_path / "cut", 3, model=model, checkpoints=EVERY_THIRD)
  resumed = train(tmp_path / "cut", 3, Evaluation([1, 2]), make_model(loss, **options))
  assert "resuming after epoch 1 of 3 and 2 of 4 steps of the next" in caplog.text
  assert_as_whole(whole, *resumed)


def test_a_run_killed_while_it_evaluates_repeats_the_epoch(whole, tmp_path):
  evaluation = Evaluation(range(3))
  with pytest.raises(Killed):
    train(tmp_path, 3, lambda: die() if evaluation.calls == 2 else evaluation())
  assert_as_whole(whole, *train(tmp_path, 3, Evaluation([2])))


def test_checkpoints_come_by_time(tmp_path, monkeypatch):
  minutes = iter(range(1000))
  monkeypatch.setattr(loop.time, "monotonic", lambda: 60.0 * next(minutes))
  model = after_steps(make_model(), 3, die)
  with pytest.raises(Killed):  # the clock is read when training begins, and at each step
    train(tmp_path, 1, model=model, checkpoints=CheckpointConfig(checkpoint_every_minutes=2))
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["ckpt-2"]


def test_categorical_draws_of_a_resumed_run_differ_from_those_of_its_first_steps(tmp_path):
  options = {"num_slates": 5, "slate_size": 4, "seed": 1}
  model = after_steps(make_model("two_stage_ips", **options), 3, die)
  with pytest.raises(Killed):
    train(tmp_path, 1, model=model, checkpoints=CheckpointConfig(checkpoint_every_steps=2))
  seeds = []
  model = make_model("two_stage_ips", **options)
  draw = tf.random.categorical

  def spy(*arguments, **named):
    seeds.append(tf.compat.v1.get_seed(named["seed"]))
    return draw(*arguments, **named)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tf.random, "categorical", spy)
    train(tmp_path, 1, model=model)
  assert seeds == [(2, 1)]


@pytest.fixture
def heeded_interrupts():
  """SIGINT as in a terminal: shells make background processes ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_saves_it(whole, tmp_path, number):
  before = signal.getsignal(number)
  model = after_steps(make_model(), 6, lambda: signal.raise_signal(number))
  words = rf"stopped by {number.name} after step 6 \(epoch 2 of 3\)"
  with pytest.raises(Stopped, match=words) as e:
    train(tmp_path, 3, model=model)
  assert e.value.exit_code == 128 + number
  assert signal.getsignal(number) == before
  assert_as_whole(whole, *train(tmp_path, 3, Evaluation([1, 2])))


def test_a_signal_during_evaluation_waits_for_its_end(tmp_path):
  def evaluate():
    signal.raise_signal(signal.SIGTERM)
    return Evaluation([0])()

  with pytest.raises(Stopped):
    train(tmp_path, 2, evaluate)
  _, history = train(tmp_path, 2, Evaluation([1]))
  assert len(history) == 2


@pytest.mark.usefixtures("heeded_interrupts")
def test_a_second_signal_acts_at_once(tmp_path):
  def twice():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)

  with pytest.raises(KeyboardInterrupt) as e:
    train(tmp_path, 1, model=after_steps(make_model(), 2, twice))
  assert not isinstance(e.value, Stopped)


# Damage and failures


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, cut, caplog):
  checkpoints = cut / "checkpoints"
  (checkpoints / "ckpt-6" / "state.index").write_bytes(b"nonsense")
  (checkpoints / ".ckpt-8.partial").mkdir()  # left by a process that was killed as it wrote
  caplog.set_level(logging.INFO, "tf_twostage")
  resumed = train(cut, 3, Evaluation([1, 2]))
  lines = [record.getMessage() for record in caplog.records]
  assert "ckpt-6/state.index was changed after it was written" in lines[0]
  assert lines[1] == "resuming after epoch 1 of 3"
  assert_as_whole(whole, *resumed)
  assert {p.name for p in checkpoints.iterdir()} == {"ckpt-8", "ckpt-12", "ckpt-6.damaged"}


def test_without_a_readable_checkpoint_training_starts_anew(whole, cut, caplog):
  for file in (cut / "checkpoints").glob("*/*.data*"):
    file.write_bytes(b"nonsense")
  resumed = train(cut, 3)
  assert "none is left, starting anew" in caplog.text
  assert_as_whole(whole, *resumed)


def test_a_full_disk_ends_in_one_message_and_keeps_earlier_checkpoints(whole, tmp_path):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

  try:
    with pytest.raises(RunError, match="cannot save to") as e:
      train(tmp_path, 3, model=after_steps(make_model(), 5, fill), checkpoints=EVERY_THIRD)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert "after step 6 (epoch 2 of 3)" in str(e.value)
  assert str(e.value).endswith("the same command resumes after step 4")
  assert "\n" not in str(e.value)
  assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"ckpt-3", "ckpt-4"}
  assert_as_whole(whole, *train(tmp_path, 3, Evaluation([1, 2])))


def test_a_directory_that_cannot_be_made_ends_in_one_message(tmp_path):
  (tmp_path / "checkpoints").write_text("a file")
  with pytest.raises(RunError, match=r"cannot save to .* the same command resumes from the start"):
    train(tmp_path, 1)


def test_a_step_without_memory_ends_in_one_message(tmp_path, monkeypatch):
  def take_step(batches):
    message = (
      "Graph execution error: ...\nOOM when allocating tensor with shape[9,8] and type float"
    )
    raise tf.errors.ResourceExhaustedError(None, None, message)

  monkeypatch.setattr(loop.Workers, "step", lambda self, model: take_step)
  with pytest.raises(RunError, match=r"^out of memory at .*shape\[9,8\]; lower batch_size") as e:
    train(tmp_path, epochs=1)
  assert "\n" not in str(e.value)


def nan_ranker(loss, **options):
  model = make_model(loss, **options)
  model._ranker_logits = lambda batch: tf.fill([tf.shape(batch["action"])[0], 15], np.nan)
  return model


@pytest.mark.parametrize(
  ("broken", "words"),
  [
    ({"learning_rate": 1e30}, "not finite are the logits"),
    ({"learning_rate": 1e30, "model": make_model}, "not finite are the logits"),
    ({"model": nan_ranker}, "the ranker's scores"),
  ],
)
def test_a_diverged_run_stops_with_a_diagnosis(tmp_path, broken, words):
  broken = dict(broken)
  if make := broken.pop("model", None):
    broken["model"] = make("two_stage_ips", num_slates=5, slate_size=4)
  with pytest.raises(RunError, match="training diverged at step") as e:
    train(tmp_path, 3, **broken)
  for part in (words, "learning rate", "Try a smaller learning_rate", "(epoch 1 of 3)"):
    assert part in str(e.value)
  assert "\n" not in str(e.value)


def test_weights_whose_products_overflow_are_not_evaluated(tmp_path):
  """The loss was finite at the only step; what comes after it would not be."""

  def evaluate():
    raise AssertionError("evaluated")

  model = make_model()
  log = make_log()
  with pytest.raises(RunError, match=r"generator: training diverged at step 1 .*weights"):
    loop.fit(
      model,
      functools.partial(log.batches, TABLES.users, seed=3),
      FitConfig(epochs=1, batch_size=len(log), learning_rate=1e30),
      rows=len(log),
      name="generator",
      evaluate=evaluate,
      select=select,
      directory=tmp_path,
    )


def test_weights_that_diverge_without_the_loss_are_not_saved(whole, tmp_path):
  model = make_model()

  def break_a_weight():
    table = model.trainable_variables[0]
    table.assign(tf.fill(table.shape, np.inf))

  with pytest.raises(RunError, match=r"diverged at step .* not finite are .*of step 4, is finite"):
    train(tmp_path, 3, model=after_steps(model, 6, break_a_weight), checkpoints=EVERY_THIRD)
  assert_as_whole(whole, *train(tmp_path, 3, Evaluation([1, 2])))


# History and TensorBoard

WEIGHTS = {
  "weight_mean",
  "weight_max",
  "share_capped",
  "share_floored",
  "effective_sample_share",
}


@pytest.mark.parametrize(
  ("loss", "options", "health"),
  [
    ("ips", {}, WEIGHTS),
    ("ips", {"policy": "two_stage", "slate_size": 5}, {*WEIGHTS, "ranker_probability"}),
    ("two_stage_ips", {"num_slates": 5}, {*WEIGHTS, "ranker_probability"}),
    ("two_stage_ips", {"sampling": "exact"}, {*WEIGHTS, "ranker_probability"}),
  ],
)
def test_history_and_tensorboard_hold_the_health_of_the_loss(
  whole, tmp_path, loss, options, health
):
  assert set(whole[2][0]["training"]) & set(HEALTH) == {"policy_entropy"}
  _, history = train(tmp_path, epochs=1, model=make_model(loss, **options))
  expected = {"policy_entropy", *health}
  assert set(history[0]["training"]) & set(HEALTH) == expected
  events = EventAccumulator(str(tmp_path / "events")).Reload()
  tags = {*events.Tags()["tensors"]}
  assert {tag.removeprefix("health/") for tag in tags if tag.startswith("health/")} == expected
  assert "validation_two_stage/precision@10" in tags
  (written,) = events.Tensors("loss/mean_loss")
  assert tf.make_ndarray(written.tensor_proto) == pytest.approx(history[0]["training"]["mean_loss"])


def test_the_share_of_time_spent_waiting_for_input_is_recorded(whole, tmp_path, monkeypatch):
  """Batches that take a fifth of a second each, against batches from memory."""
  batches = LogRows.batches

  def slow(log, *arguments, **options):
    def wait(batch):
      with tf.control_dependencies([tf.py_function(lambda: time.sleep(0.2), [], [])]):
        return tf.nest.map_structure(tf.identity, batch)

    return batches(log, *arguments, **options).map(wait)

  monkeypatch.setattr(LogRows, "batches", slow)
  model, history = train(tmp_path, 3)
  assert_as_whole(whole, model, history)
  # On a busy machine the steps, too, take long.
  assert whole[2][1]["input_wait_share"] < 0.2 < history[1]["input_wait_share"] < 1
  events = EventAccumulator(str(tmp_path / "events")).Reload()
  last = events.Tensors("input/wait_share")[-1]
  assert tf.make_ndarray(last.tensor_proto) == pytest.approx(history[-1]["input_wait_share"])
