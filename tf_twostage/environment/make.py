"""Makes the environment that the settings describe."""

from __future__ import annotations

import pathlib

from tf_twostage.config import Config, DataConfig, UserLogConfig
from tf_twostage.data import sets
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.data.sets import layouts
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.data.sets.xmc import XmcData
from tf_twostage.environment.base import Environment
from tf_twostage.environment.bayesian import with_bayesian
from tf_twostage.environment.complete_ratings import complete_ratings
from tf_twostage.environment.full_labels import full_labels
from tf_twostage.environment.prepared import prepared
from tf_twostage.environment.simulated import simulated
from tf_twostage.environment.user_log import DATASET, log_environment, user_log
from tf_twostage.errors import InputError
from tf_twostage.evaluation import full_information
from tf_twostage.models.probit import of_sweeps
from tf_twostage.workspace import Workspace


def make(
  config: Config, workspace: Workspace, data: RatingsData | XmcData | None = None
) -> Environment:
  """Makes the environment of `config`; stages whose inputs did not change are reused.

  `data` takes the place of the data set that `config` names.
  """
  environment = _make(config, workspace, data)
  if config.reward.reward_predictor != "bayesian":
    return environment
  return with_bayesian(environment, of_sweeps(config.reward.reward_sweeps, config.environment_seed))


def _make(config: Config, workspace: Workspace, data: RatingsData | XmcData | None) -> Environment:
  """See `make`."""
  name = config.data.dataset
  if data is None and name != sets.RATINGS and (config.user_log.log or name == DATASET):
    _refuse_ranker_settings(config)
    return user_log(config, workspace)
  with workspace.timed("data"):
    if data is None:
      is_ratings = name == sets.RATINGS
      data = _ratings(config) if is_ratings else sets.load(name, config.data.data_dir)
  given = config.data.environment and not config.simulation.log_number
  if config.ratings_are_the_log or isinstance(data, XmcData) or given:
    _refuse_ranker_settings(config)
  if config.ratings_are_the_log:
    return _choices(config, data, workspace)
  if config.data.history:
    raise InputError(
      "history: only ratings that are learned from themselves have it, not simulated feedback or"
      " documents; leave it out"
    )
  _check_sizes(config, data)
  if isinstance(data, XmcData):
    return full_labels(config, data, workspace)
  if data.complete_users:
    return complete_ratings(config, data, workspace)
  if config.data.environment:
    with workspace.timed("environment"):
      return prepared(config, data, pathlib.Path(config.data.environment), workspace)
  return simulated(config, data, workspace)


def _choices(config: Config, data: RatingsData | XmcData, workspace: Workspace) -> Environment:
  """The environment of ratings as a log; InputError for settings that would change nothing."""
  if isinstance(data, XmcData):
    raise InputError("simulate: documents have labels, not ratings; leave it out")
  above = config.data.positive_above
  if data.rating is None and above != DataConfig.positive_above:
    raise InputError(
      f"positive_above={above} changes nothing: all orders are positive; leave it out"
    )
  if config.data.environment:
    raise InputError(
      f"environment={config.data.environment} replaces a simulation; leave it out, or simulate"
    )
  log = data.log(above, history="history" if config.data.history else None)
  return log_environment(config, log, None, workspace, config.user_log.ranker)


def _refuse_ranker_settings(config: Config) -> None:
  """Raises InputError for settings of rankers that are fitted to ratings of all pairs."""
  for name in ("ranker_pairs", "ranker_reversed"):
    if value := getattr(config.simulation, name):
      raise InputError(
        f"{name}={value} changes nothing: only feedback simulated from ratings has such a ranker;"
        " leave it out"
      )


def _ratings(config: Config) -> RatingsData:
  """The ratings in `data_dir`, or in the files that are named; InputError for settings beside."""
  settings, schema = config.user_log, None
  if settings.schema != UserLogConfig.schema:
    schema = LogSchema.from_file(settings.schema)
  if settings.stream:
    raise InputError("stream: ratings are read into memory; leave it out")
  if (settings.log is None) == (config.data.data_dir is None):
    raise InputError(
      "dataset ratings reads files: set data_dir to their directory, or log (and items and users)"
      " to the files, one of the two"
    )
  if settings.log is not None:
    files = layouts.named(settings.log, settings.items, settings.users, schema)
  elif settings.items or settings.users:
    raise InputError("data_dir holds items and users, too; leave the settings items and users out")
  else:
    files = layouts.find(pathlib.Path(str(config.data.data_dir)).expanduser(), schema)
  return RatingsData.from_files(files, on_bad_rows=settings.on_bad_rows)


def _check_sizes(config: Config, data: RatingsData | XmcData) -> None:
  if isinstance(data, XmcData):
    num_users, users = data.num_documents - data.num_train, "test documents"
    num_items, items = data.num_labels, "labels"
  else:
    num_users, users = data.complete_users or data.num_users, "users"
    num_items, items = data.num_items, "items"
  if not 0 < config.data.validation_users < num_users:
    raise InputError(
      f"validation_users is {config.data.validation_users}, but {data.name} has"
      f" {num_users} {users}: pick a number between, so that some validate and some test"
    )
  if not max(full_information.CUTOFFS) <= config.slate_size <= num_items:
    raise InputError(
      f"slate_size is {config.slate_size}; it must reach the evaluation's cut-off"
      f" {max(full_information.CUTOFFS)} and not exceed the {num_items} {items} of {data.name}"
    )
