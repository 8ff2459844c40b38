"""Epochs, checkpoints, resume, TensorBoard."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tf_twostage import losses, training
from tf_twostage.bandit_log import BanditLog
from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.datasets import make_synthetic
from tf_twostage.models.candidate_generator import CandidateGenerator
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.monitoring import HEALTH

DATA = make_synthetic(num_users=20, num_items=15, num_ratings=200)
TABLES = EncodedTables.encode(DATA.schema, DATA.users, DATA.items)
ROWS = 64


def make_log():
  rng = np.random.default_rng(0)
  return BanditLog(
    user_index=rng.integers(20, size=ROWS).astype(np.int32),
    action=rng.integers(15, size=ROWS).astype(np.int32),
    propensity=rng.uniform(0.05, 0.5, size=ROWS).astype(np.float32),
    reward=np.ones(ROWS, np.float32),
  )


def make_model(loss="cross_entropy", **options):
  tf.keras.utils.set_random_seed(1)
  towers = TwoTower(TABLES, EncoderConfig(), l2=1e-4)

  def ranker(batch):
    return tf.zeros([tf.shape(batch["action"])[0], 15])

  return CandidateGenerator(towers, losses.get(loss, **options), ranker_logits=ranker)


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


def train(directory, epochs, evaluation=None, model=None, **options):
  model = model or make_model()
  history = training.train_generator(
    model,
    make_log(),
    TABLES.users,
    evaluation or Evaluation(range(epochs)),
    lambda scores: scores["validation"]["two_stage"]["precision@10"],
    FitConfig(epochs=epochs, batch_size=16),
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
  assert training.best_epoch(history)["epoch"] == 2
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
    ("ips", {"policy": "two_stage", "slate_size": 5}, {*WEIGHTS, "ranker_share"}),
    ("two_stage_ips", {}, {*WEIGHTS, "ranker_share"}),
    ("two_stage_ips", {"sampling": "exact"}, {*WEIGHTS, "ranker_share"}),
  ],
)
def test_training_history_holds_what_the_loss_can_tell(tmp_path, loss, options, told):
  _, history = train(tmp_path, epochs=1, model=make_model(loss, **options))
  assert set(history[0]["training"]) & set(HEALTH) == {"policy_entropy", *told}


def test_a_history_is_finished_at_its_last_epoch(tmp_path):
  assert training.finished_history(tmp_path, 2) is None
  _, history = train(tmp_path, epochs=2)
  assert training.finished_history(tmp_path, 2) == history
  assert training.finished_history(tmp_path, 3) is None


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
