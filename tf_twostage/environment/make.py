"""Which environment the settings ask for."""

from __future__ import annotations

import pathlib

from tf_twostage import datasets
from tf_twostage.config import Config
from tf_twostage.datasets.ratings import RatingsData
from tf_twostage.datasets.xmc import XmcData
from tf_twostage.environment.base import Environment
from tf_twostage.environment.labelled import labelled
from tf_twostage.environment.own_log import DATASET, own_log
from tf_twostage.environment.ready import ready
from tf_twostage.environment.simulated import simulated
from tf_twostage.errors import InputError
from tf_twostage.evaluation import protocol
from tf_twostage.stages import Stages


def make(config: Config, stages: Stages) -> Environment:
  """The environment that `config` asks for: stages whose inputs did not change are reused.

  Raises:
    InputError: the data or the settings do not fit; nothing has been trained.
  """
  if config.own_log.log is not None or config.data.dataset == DATASET:
    return own_log(config, stages)
  with stages.timed("data"):
    data = datasets.load(config.data.dataset, config.data.data_dir)
    _check_sizes(config, data)
  if isinstance(data, XmcData):
    return labelled(config, data, stages)
  if config.data.environment:
    with stages.timed("environment"):
      return ready(config, data, pathlib.Path(config.data.environment))
  return simulated(config, data, stages)


def _check_sizes(config: Config, data: RatingsData | XmcData) -> None:
  if isinstance(data, XmcData):
    num_users, users = data.num_documents - data.num_train, "test documents"
    num_items, items = data.num_labels, "labels"
  else:
    num_users, users, num_items, items = data.num_users, "users", data.num_items, "items"
  if not 0 < config.data.validation_users < num_users:
    raise InputError(
      f"validation_users is {config.data.validation_users}, but {data.name} has"
      f" {num_users} {users}: pick a number between, so that some validate and some test"
    )
  if not max(protocol.CUTOFFS) <= config.slate_size <= num_items:
    raise InputError(
      f"slate_size is {config.slate_size}; it must reach the evaluation's cut-off"
      f" {max(protocol.CUTOFFS)} and not exceed the {num_items} {items} of {data.name}"
    )
