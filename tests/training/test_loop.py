"""Epochs, checkpoints, resume, TensorBoard."""

import logging
import resource
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
from tf_twostage.training.tensorboard import HEALTH

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


def make_model(loss="cross_entropy", *, hard_candidates=0, **options):
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
  return CandidateGenerator(towers, losses.get(loss, **options), ranker, support)


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


def train(directory, epochs, evaluation=None, model=None, learning_rate=0.05, **options):
  model = model or make_model()
  history = loop.train_generator(
    model,
    make_log(),
    TABLES.users,
    evaluation or Evaluation(range(epochs)),
    lambda scores: scores["validation"]["two_stage"]["precision@10"],
    FitConfig(epochs=epochs, batch_size=16, learning_rate=learning_rate),
    directory,
    seed=3,
    hyper_parameters={"loss": "cross_entropy", "epochs": epochs},
    tensorboard=directory / "events",
    **options,
  )
  return model, history


def weights(model):
  return np.concatenate([w.ravel() for w in model.towers.get_weights()])


def test_loss_falls(tmp_path):
  _, history = train(tmp_path, epochs=5)
  curve = [entry["training"]["mean_loss"] for entry in history]
  assert curve[-1] < curve[0]


def test_the_same_seed_gives_the_same_weights(tmp_path):
  first, _ = train(tmp_path / "a", epochs=2)
  second, _ = train(tmp_path / "b", epochs=2)
  np.testing.assert_array_equal(weights(first), weights(second))


def test_the_best_epochs_weights_are_left(tmp_path):
  best, _ = train(tmp_path / "a", epochs=2)
  model, history = train(tmp_path / "b", epochs=4, evaluation=Evaluation([0, 3, 2, 1]))
  assert loop.best_epoch(history)["epoch"] == 2
  np.testing.assert_array_equal(weights(model), weights(best))


def test_a_run_cut_short_goes_on_to_the_same_end(tmp_path):
  whole, whole_history = train(tmp_path / "whole", epochs=4)

  class Killed(Exception):
    pass

  def dies_in_third_epoch():
    if evaluation.calls == 2:
      raise Killed
    return evaluation()

  evaluation = Evaluation(range(4))
  with pytest.raises(Killed):
    train(tmp_path / "cut", epochs=4, evaluation=dies_in_third_epoch)
  resumed, history = train(tmp_path / "cut", epochs=4, evaluation=Evaluation([2, 3]))
  np.testing.assert_array_equal(weights(resumed), weights(whole))
  assert [e["epoch"] for e in history] == [1, 2, 3, 4]
  for resumed_entry, entry in zip(history, whole_history, strict=True):
    assert resumed_entry["training"] == pytest.approx(entry["training"])


class Killed(BaseException):
  """Leaves no time to save anything."""


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


def die():
  raise Killed


EVERY_THIRD = CheckpointConfig(checkpoint_every_steps=3)  # of four in an epoch
DETERMINISTIC = [
  ("cross_entropy", {}),
  ("two_stage_ips", {"sampling": "exact", "slate_size": 4, "hard_candidates": 3}),
  ("two_stage_ips", {"sampling": "systematic", "num_slates": 5, "slate_size": 4, "seed": 1}),
]


@pytest.mark.parametrize(("loss", "options"), DETERMINISTIC)
def test_a_run_killed_within_an_epoch_goes_on_to_the_same_end_bit_for_bit(
  tmp_path, caplog, loss, options
):
  caplog.set_level(logging.INFO, "tf_twostage")
  whole, whole_history = train(tmp_path / "whole", 3, model=make_model(loss, **options))
  model = after_steps(make_model(loss, **options), 8, die)
  with pytest.raises(Killed):
    train(tmp_path / "cut", 3, model=model, checkpoints=EVERY_THIRD)
  resumed, history = train(tmp_path / "cut", 3, Evaluation([1, 2]), make_model(loss, **options))
  assert "going on after epoch 1 of 3 and 2 of 4 steps of the next" in caplog.text
  np.testing.assert_array_equal(weights(resumed), weights(whole))
  assert timeless(history) == timeless(whole_history)


def test_checkpoints_come_by_time(tmp_path, monkeypatch):
  minutes = iter(range(1000))
  monkeypatch.setattr(loop.time, "monotonic", lambda: 60.0 * next(minutes))
  model = after_steps(make_model(), 3, die)
  with pytest.raises(Killed):  # the clock is read when training begins, and at each step
    train(tmp_path, 1, model=model, checkpoints=CheckpointConfig(checkpoint_every_minutes=2))
  assert [p.stem for p in (tmp_path / "checkpoints").glob("*.index")] == ["ckpt-2"]


def test_categorical_draws_of_a_resumed_run_are_not_those_of_its_first_steps(tmp_path):
  options = {"num_slates": 5, "slate_size": 4, "seed": 1}
  model = after_steps(make_model("two_stage_ips", **options), 3, die)
  with pytest.raises(Killed):
    train(tmp_path, 2, model=model, checkpoints=CheckpointConfig(checkpoint_every_steps=2))
  seeds = []
  model = make_model("two_stage_ips", **options)
  draw = tf.random.categorical

  def spy(*arguments, **named):
    seeds.append(tf.compat.v1.get_seed(named["seed"]))
    return draw(*arguments, **named)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tf.random, "categorical", spy)
    train(tmp_path, 2, model=model)
  assert seeds == [(2, 1)]


@pytest.fixture
def heeded_interrupts():
  """SIGINT as in a terminal: shells make what they start in the background ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_saves_it(tmp_path, number):
  whole, _ = train(tmp_path / "whole", 2)
  before = signal.getsignal(number)
  model = after_steps(make_model(), 6, lambda: signal.raise_signal(number))
  with pytest.raises(
    Stopped, match=rf"stopped by {number.name} after step 6 \(epoch 2 of 2\)"
  ) as e:
    train(tmp_path / "cut", 2, model=model)
  assert e.value.exit_code == 128 + number
  assert signal.getsignal(number) == before
  resumed, _ = train(tmp_path / "cut", 2, Evaluation([1]))
  np.testing.assert_array_equal(weights(resumed), weights(whole))


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
    train(tmp_path, 2, model=after_steps(make_model(), 2, twice))
  assert not isinstance(e.value, Stopped)


def cut(directory, steps):
  with pytest.raises(Killed):
    train(directory, 3, model=after_steps(make_model(), steps + 1, die), checkpoints=EVERY_THIRD)


@pytest.mark.parametrize("part", ["data-00000-of-00001", "index", "json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog, part, damage):
  cut(tmp_path, steps=6)  # checkpoints of steps 4 and 6
  newest = tmp_path / "checkpoints" / f"ckpt-6.{part}"
  content = newest.read_bytes()
  middle = len(content) // 2
  flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
  newest.write_bytes({"cut": content[:middle], "flipped": flipped, "empty": b""}[damage])
  caplog.set_level(logging.INFO, "tf_twostage")
  resumed, history = train(tmp_path, 3, Evaluation([1, 2]))
  lines = [record.getMessage() for record in caplog.records]
  assert "ckpt-6 cannot be read" in lines[0]
  assert lines[0].endswith("trying the one before")
  assert "\n" not in lines[0]
  assert lines[1] == "going on after epoch 1 of 3"
  whole, whole_history = train(tmp_path / "whole", 3)
  assert timeless(history) == timeless(whole_history)
  np.testing.assert_array_equal(weights(resumed), weights(whole))


def test_without_a_readable_checkpoint_training_starts_anew(tmp_path, caplog):
  cut(tmp_path, steps=6)
  for file in (tmp_path / "checkpoints").glob("*.data*"):
    file.write_bytes(b"nonsense")
  resumed, history = train(tmp_path, 3)
  assert "none is left, starting anew" in caplog.text
  whole, whole_history = train(tmp_path / "whole", 3)
  assert timeless(history) == timeless(whole_history)
  np.testing.assert_array_equal(weights(resumed), weights(whole))


def test_a_half_written_checkpoint_does_not_count(tmp_path):
  cut(tmp_path, steps=6)
  checkpoints = tmp_path / "checkpoints"
  (checkpoints / ".partial").mkdir()
  (checkpoints / ".partial" / "ckpt-7.index").write_bytes(b"half")
  (checkpoints / "ckpt-7.data-00000-of-00001").write_bytes(b"half")
  train(tmp_path, 3, Evaluation([1, 2]))
  assert {p.stem for p in checkpoints.glob("*.index")} == {"ckpt-8", "ckpt-12"}
  assert not (checkpoints / ".partial").exists()


def test_a_damaged_history_is_made_again(tmp_path):
  _, history = train(tmp_path, 2)
  (tmp_path / "history.json").write_text("[{")
  assert loop.finished_history(tmp_path, 2) is None
  assert train(tmp_path, 2, Evaluation([]))[1] == history


def test_a_full_disk_ends_in_one_message_and_leaves_what_was_saved(tmp_path):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

  try:
    with pytest.raises(RunError, match="cannot save to") as e:
      train(tmp_path, 3, model=after_steps(make_model(), 5, fill), checkpoints=EVERY_THIRD)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert "after step 6 (epoch 2 of 3)" in str(e.value)
  assert str(e.value).endswith("the same command goes on after step 4")
  assert "\n" not in str(e.value)
  assert not (tmp_path / "checkpoints" / ".partial").exists()
  resumed, history = train(tmp_path, 3, Evaluation([1, 2]))
  whole, whole_history = train(tmp_path / "whole", 3)
  assert timeless(history) == timeless(whole_history)
  np.testing.assert_array_equal(weights(resumed), weights(whole))


def test_a_directory_that_cannot_be_made_ends_in_one_message(tmp_path):
  (tmp_path / "checkpoints").write_text("a file")
  with pytest.raises(RunError, match=r"cannot save to .* the same command goes on from the start"):
    train(tmp_path, 1)


def nan_ranker(loss, **options):
  model = make_model(loss, **options)
  model._ranker_logits = lambda batch: tf.fill([tf.shape(batch["action"])[0], 15], np.nan)
  return model


def test_a_step_without_memory_ends_in_one_message(tmp_path, monkeypatch):
  def take_step(batches):
    message = (
      "Graph execution error: ...\nOOM when allocating tensor with shape[9,8] and type float"
    )
    raise tf.errors.ResourceExhaustedError(None, None, message)

  monkeypatch.setattr(loop.Workers, "step", lambda self, model: take_step)
  with pytest.raises(RunError, match=r"^out of memory at .*shape\[9,8\]; lower --batch_size") as e:
    train(tmp_path, epochs=1)
  assert "\n" not in str(e.value)


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
  for part in (words, "learning rate", "Try a smaller --learning_rate", "(epoch 1 of 3)"):
    assert part in str(e.value)
  assert "\n" not in str(e.value)


def test_a_finite_checkpoint_stays_when_weights_diverge_without_the_loss(tmp_path):
  model = make_model()

  def break_a_weight():
    table = model.trainable_variables[0]
    table.assign(tf.fill(table.shape, np.inf))

  with pytest.raises(RunError, match=r"diverged at step .* not finite are .*of step 4"):
    train(tmp_path, 3, model=after_steps(model, 6, break_a_weight), checkpoints=EVERY_THIRD)
  resumed, _ = train(tmp_path, 3, Evaluation([1, 2]))
  whole, _ = train(tmp_path / "whole", 3)
  np.testing.assert_array_equal(weights(resumed), weights(whole))


def test_a_finished_run_is_not_trained_again(tmp_path):
  first, _ = train(tmp_path, epochs=3, evaluation=Evaluation([0, 2, 1]))
  never = Evaluation([])
  second, history = train(tmp_path, epochs=3, evaluation=never)
  assert never.calls == 0
  assert len(history) == 3
  np.testing.assert_array_equal(weights(first), weights(second))


WEIGHTS = {
  "weight_mean",
  "weight_max",
  "share_capped",
  "share_floored",
  "effective_sample_share",
}


@pytest.mark.parametrize(
  ("loss", "options", "told"),
  [
    ("cross_entropy", {}, set()),
    ("ips", {}, WEIGHTS),
    ("ips", {"policy": "two_stage", "slate_size": 5}, {*WEIGHTS, "ranker_probability"}),
    ("two_stage_ips", {}, {*WEIGHTS, "ranker_probability"}),
    ("two_stage_ips", {"sampling": "exact"}, {*WEIGHTS, "ranker_probability"}),
  ],
)
def test_training_history_holds_what_the_loss_can_tell(tmp_path, loss, options, told):
  _, history = train(tmp_path, epochs=1, model=make_model(loss, **options))
  assert set(history[0]["training"]) & set(HEALTH) == {"policy_entropy", *told}


def test_a_history_is_finished_at_its_last_epoch(tmp_path):
  assert loop.finished_history(tmp_path, 2) is None
  _, history = train(tmp_path, epochs=2)
  assert loop.finished_history(tmp_path, 2) == history
  assert loop.finished_history(tmp_path, 3) is None


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_unless_unwanted(tmp_path, capsys, progress):
  train(tmp_path, epochs=1, progress=progress)
  assert ("generator:" in capsys.readouterr().err) == progress


def test_tensorboard_gets_epoch_means_health_and_validation(tmp_path):
  _, history = train(tmp_path, epochs=2, model=make_model("two_stage_ips"))
  events = EventAccumulator(str(tmp_path / "events")).Reload()
  tags = {*events.Tags()["tensors"]}
  assert {f"health/{name}" for name in HEALTH} <= tags
  assert "validation_two_stage/precision@10" in tags
  losses_written = [tf.make_ndarray(e.tensor_proto) for e in events.Tensors("loss/mean_loss")]
  np.testing.assert_allclose(losses_written, [e["training"]["mean_loss"] for e in history])


def test_the_share_of_time_spent_waiting_is_told(tmp_path, monkeypatch):
  """Batches that take a tenth of a second each, against none that do."""
  batches = LogRows.batches

  def slow(log, *arguments, **options):
    def wait(batch):
      with tf.control_dependencies([tf.py_function(lambda: time.sleep(0.1), [], [])]):
        return tf.nest.map_structure(tf.identity, batch)

    return batches(log, *arguments, **options).map(wait)

  _, fast_history = train(tmp_path / "fast", epochs=2)
  monkeypatch.setattr(LogRows, "batches", slow)
  _, history = train(tmp_path / "slow", epochs=2)
  assert timeless(history) == timeless(fast_history)
  assert fast_history[1]["input_wait_share"] < 0.5 < history[1]["input_wait_share"] < 1
  events = EventAccumulator(str(tmp_path / "slow" / "events")).Reload()
  (_, last) = events.Tensors("input/wait_share")
  assert tf.make_ndarray(last.tensor_proto) == pytest.approx(history[1]["input_wait_share"])
