"""Logs of slates as environments: whose examination is used, and what is said of it."""

import dataclasses

import numpy as np
import pytest

from tf_twostage.config import Config, DataConfig, FitConfig, UserLogConfig
from tf_twostage.data.sets import make_slates
from tf_twostage.environment import user_log
from tf_twostage.errors import InputError
from tf_twostage.workspace import Workspace

CONFIG = Config(
  slate_size=3,
  data=DataConfig(dataset="user_log"),
  user_log=UserLogConfig(split="random"),
  ranker=FitConfig(epochs=1, batch_size=512),
)


@pytest.fixture(scope="module")
def log():
  return make_slates(num_users=60, num_items=12, slate_size=3).log(1500)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
  return tmp_path_factory.mktemp("stages")


def make(log, stages, **settings):
  own = dataclasses.replace(CONFIG.user_log, **settings)
  config = dataclasses.replace(CONFIG, user_log=own)
  return user_log.log_environment(config, log, None, Workspace(stages))


def test_slates_get_an_estimate_by_default_and_rewards_are_divided_by_it(log, stages):
  made = make(log, stages)
  facts, curve = made.facts["examination"], made.examination.curve
  assert facts["estimated"]
  assert facts["curve"] == curve.tolist()
  assert sum("which is ESTIMATED (" in note for note in made.notes) == 1
  rewarded = made.log.reward[made.log.reward > 0]
  np.testing.assert_allclose(np.unique(rewarded), np.sort(curve.max() / curve), rtol=1e-6)


def test_a_column_of_examination_wins(log, stages):
  given = log.with_examination(np.array([0.8, 0.4, 0.2]))
  made = make(given, stages)
  assert made.examination is None
  assert made.facts["examination"] == {"estimated": False}
  np.testing.assert_allclose(np.unique(made.log.reward), [0, 1, 2, 4])


def test_slates_are_valued_with_logged_rewards_and_the_curve_of_a_position_based_model(log, stages):
  made = make(log, stages)
  valued = made.evaluation_log(Workspace(stages)).slate_log
  assert set(valued.rows.reward) == {0, 1}
  assert valued.examination is not None
  cascade = make(log, stages, examination="cascade")
  valued = cascade.evaluation_log(Workspace(stages))
  assert valued.slate_log.examination is None
  assert valued.rows.reward.max() > 1
  assert cascade.slot_examination[0] == 1


def test_none_leaves_rewards_as_they_are_and_says_so(log, stages):
  made = make(log, stages, examination="none")
  assert set(made.log.reward) == {0, 1}
  assert "rewards are not corrected for the examination of slots" in made.notes


def test_environments_with_and_without_correction_stay_apart(log, stages):
  given = log.with_examination(np.array([0.8, 0.4, 0.2]))
  made = [make(data, stages, examination=e) for data in (log, given) for e in (None, "none")]
  assert len({environment.name for environment in made}) >= 3


def test_settings_that_change_nothing_are_refused(log, stages):
  given = log.with_examination(np.ones(3))
  with pytest.raises(InputError, match="the log has a column of examination, which is used"):
    make(given, stages, examination="em")
  with pytest.raises(InputError, match="the log has no slates, so examination and trust_bias"):
    make(dataclasses.replace(log, slate=None), stages, trust_bias=True)
  with pytest.raises(InputError, match="trust_bias needs examination=em, got harvesting"):
    make(log, stages, examination="harvesting", trust_bias=True)


def test_a_log_without_slates_is_as_before(log, stages):
  made = make(dataclasses.replace(log, slate=None), stages)
  assert "examination" not in made.facts
  assert set(made.log.reward) == {0, 1}
