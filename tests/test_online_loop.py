"""Serving, logging and training, round after round."""

import dataclasses

import numpy as np
import pytest

from tests import prepared_environment
from tf_twostage import online_loop as loop
from tf_twostage import serving
from tf_twostage.config import (
  Config,
  DataConfig,
  EncoderConfig,
  FitConfig,
  GeneratorConfig,
  SimulationConfig,
)
from tf_twostage.errors import InputError

# As in launch/loop.flags, but for draws of slates that take less time.
CONFIG = Config(
  slate_size=20,
  data=DataConfig(dataset="synthetic", validation_users=130),
  encoder=EncoderConfig(embedding_stddev=1.0),
  ranker=FitConfig(epochs=20),
  simulation=SimulationConfig(behavior_pairs=1000, items_per_user=2),
  generator=GeneratorConfig(epochs=10, item_bias=False),
  loss="two_stage_ips:sampling=systematic:num_slates=50",
)
ROUNDS = 3


@pytest.fixture(scope="module")
def went_round(tmp_path_factory):
  """The loop, its rounds, and what was logged in each."""
  root = tmp_path_factory.mktemp("loop")
  logs = []

  def only_save(recommender, directory, requests, *, keep, extra):
    version = directory / str(len(logs) + 1)
    serving.save(recommender, version)
    return version

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(serving, "export", only_save)
    the_loop = loop.Loop(CONFIG, root / "run", draws=4, temperature=1.0)
    served = the_loop._served
    patch.setattr(the_loop, "_served", lambda version: logs.append(served(version)) or logs[-1])
    rounds = list(the_loop.run(root / "export", ROUNDS, keep=1))
  return the_loop, rounds, logs


def test_the_true_value_rises_round_after_round(went_round):
  the_loop, rounds, _ = went_round
  values = [the_loop.logging_policy.value, *(r.truth for r in rounds)]
  assert len(values) == ROUNDS + 1
  assert np.all(np.diff(values) > 0.01)
  assert values[-1] > 2 * values[0]


def test_what_is_logged_is_what_the_policy_is_worth(went_round):
  _, rounds, _ = went_round
  for r in rounds:
    assert abs(r.logged.value - r.truth) < 4 * r.logged.standard_error


def test_a_policy_on_distinct_candidates_logs_its_own_propensities(went_round, tmp_path):
  the_loop, _, _ = went_round
  config = dataclasses.replace(
    CONFIG,
    generator=dataclasses.replace(CONFIG.generator, epochs=2),
    loss="ips:policy=distinct",
    loss_options={},
  )
  model = loop.TwoStageRecommender.from_config(config)
  model.fit_rows(the_loop._environment, the_loop._environment.log)
  serving.save(model._servable(), tmp_path / "1")
  log = loop.Loop._served(the_loop, tmp_path / "1")
  distinct, repeats = (
    model.policy(stage).on(the_loop._evaluation) for stage in (None, "two_stage")
  )
  first, rows = the_loop._evaluation.distinct_contexts[0], np.arange(len(log)) // 4
  np.testing.assert_array_equal(the_loop._users[rows], log.user_index)
  probabilities = distinct.probabilities(first)[rows, log.action]
  np.testing.assert_allclose(log.propensity, probabilities, rtol=0.02, atol=1e-6)
  assert np.abs(log.propensity - repeats.probabilities(first)[rows, log.action]).mean() > 1e-3


def test_estimates_from_the_log_of_the_policy_before_tell_the_value(went_round):
  """The first log is of another, worse policy, and worth a few users only."""
  _, rounds, _ = went_round
  first, *later = rounds
  assert first.estimate.effective_sample_size < 10
  for r in later:
    assert r.estimate.effective_sample_size > 20
    assert abs(r.estimate.value - r.truth) < 4 * r.estimate.standard_error


def test_every_policy_learns_from_all_logs_but_for_what_judges_it(went_round):
  _, rounds, logs = went_round
  assert {len(log) for log in logs} == {400 * 4}
  grown = np.diff([r.rows for r in rounds])
  assert np.all(np.abs(grown - 0.75 * 1600) < 100)


def test_a_table_says_it(went_round):
  the_loop, rounds, _ = went_round
  lines = loop.table(the_loop.logging_policy, rounds).splitlines()
  assert lines[0].split()[:2] == ["policy", "trained"]
  assert lines[1].split()[:2] == ["logging", "policy"]
  assert f"{100 * rounds[-1].truth:.1f}" in lines[-1]
  assert len(lines) == ROUNDS + 2


def test_users_must_be_simulated(tmp_path):
  ready = prepared_environment.contents().write(tmp_path / "ready")
  config = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, environment=str(ready))
  )
  with pytest.raises(InputError, match="a loop simulates users"):
    loop.Loop(config, tmp_path, draws=1, temperature=1.0)
