"""Settings: types, limits, and losses written as text."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from tf_twostage.config import (
  Config,
  DistributionConfig,
  FitConfig,
  GeneratorConfig,
  SimulationConfig,
  SupportConfig,
  UserLogConfig,
)
from tf_twostage.errors import InputError


@pytest.mark.parametrize(
  ("kind", "options", "message"),
  [
    (FitConfig, {"epochs": 0}, "epochs must be at least 1, got 0"),
    (FitConfig, {"epochs": 1.5}, "epochs must be of type int, got 1.5"),
    (FitConfig, {"epochs": True}, "epochs must be of type int, got True"),
    (FitConfig, {"l2": "high"}, "l2 must be of type float, got 'high'"),
    (FitConfig, {"learning_rate": 0}, "learning_rate must be above 0, got 0.0"),
    (FitConfig, {"learning_rate": np.nan}, "learning_rate must be above 0, got nan"),
    (FitConfig, {"sparse_l2": 1}, "sparse_l2 must be of type bool, got 1"),
    (SimulationConfig, {"holdout": 1.0}, "holdout must be below 1, got 1.0"),
    (GeneratorConfig, {"selection": "best"}, "selection must be one of two_stage, one_stage, both"),
    (GeneratorConfig, {"turn_epochs": 2}, "turn_epochs=2 changes nothing with train=generator"),
    (GeneratorConfig, {"ranker_rate": 0.1}, "ranker_rate=0.1 changes nothing with train=generator"),
    (UserLogConfig, {"on_bad_rows": "maybe"}, "on_bad_rows must be one of fail, skip, got 'maybe'"),
    (UserLogConfig, {"data_service": "grpc://here:1"}, "needs stream=true"),
    (UserLogConfig, {"examination": "em", "stream": True}, "change nothing with stream=true"),
    (SupportConfig, {"hard_candidates": 8}, "hard_candidates=8 changes nothing without a support"),
    (SupportConfig, {"support_draws": "popularity"}, "support_draws=popularity changes nothing"),
    (
      DistributionConfig,
      {"replicas": 2},
      "replicas=2 changes nothing unless distribution=mirrored",
    ),
    (Config, {"slate_size": 0}, "slate_size must be at least 1, got 0"),
    (Config, {"loss": "ips:policy"}, "'policy' in 'ips:policy': write option=value"),
  ],
)
def test_wrong_settings_are_refused(kind, options, message):
  with pytest.raises(InputError) as error:
    kind(**options)
  assert message in str(error.value)


def test_numbers_have_the_type_of_their_setting():
  made = FitConfig(l2=0, epochs=np.int64(3))
  assert [(type(v), v) for v in (made.l2, made.epochs)] == [(float, 0.0), (int, 3)]


def test_a_loss_is_text_or_a_name_with_options():
  config = Config(loss="two_stage_ips:num_slates=50:normalize_shares=true:sampling=exact:alpha=.5")
  options = {"num_slates": 50, "normalize_shares": True, "sampling": "exact", "alpha": 0.5}
  assert (config.loss, config.loss_options) == ("two_stage_ips", options)
  assert config == Config(loss="two_stage_ips", loss_options=options)
  assert Config(loss="ips:baseline=1", loss_options={"baseline": 2}).loss_options == {"baseline": 2}


def test_a_config_survives_json_and_pickle_and_is_a_key():
  config = Config(loss="ips:policy=two_stage:weight_cap=5", generator=GeneratorConfig(epochs=3))
  values = json.loads(json.dumps(dataclasses.asdict(config)))
  values["generator"] = GeneratorConfig(**values["generator"])
  for name, section in values.items():
    if isinstance(section, dict) and name != "loss_options":
      values[name] = type(getattr(config, name))(**section)
  assert Config(**values) == config == pickle.loads(pickle.dumps(config))
  assert {config: 1}[Config(**values)] == 1
