"""An environment of a log of one's own: rows held out of it are the evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_twostage.config import Config, DataConfig
from tf_twostage.data import load as files
from tf_twostage.data import splits
from tf_twostage.data.log import BanditLog
from tf_twostage.data.splits import Splits
from tf_twostage.environment import rankers
from tf_twostage.environment.base import Environment, requests
from tf_twostage.environment.log_parts import LogParts
from tf_twostage.environment.streaming import FIRST, stream_log
from tf_twostage.errors import InputError
from tf_twostage.evaluation import full_information, propensities
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.evaluator import Scorer
from tf_twostage.evaluation.held_out import HeldOutEvaluator
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.workspace import Workspace, fingerprint

DATASET = "user_log"


def user_log(config: Config, workspace: Workspace) -> Environment:
  """Reads a log, holds rows out of it, estimates propensities that it lacks, prepares its ranker.

  Generators, rankers and reward models see training rows only.

  Raises:
    InputError: files, settings or a given ranker do not fit; nothing has been trained.
  """
  settings = config.user_log
  _check_settings(config)
  facts: dict[str, Any] = {"propensities": {"estimated": False}}
  held_out = None
  if settings.stream:
    with workspace.timed("data"):
      found = stream_log(config, workspace)
      data, parts, notes, log_stage = found.data, found.parts, list(found.notes), found.digest
      facts["rows"] = found.sizes
      _check_rows(config, data, found.sizes, len(parts.train.positives()))
      given = rankers.given(settings.ranker, data)
  else:
    with workspace.timed("data"):
      data = files.load(
        str(settings.log),
        settings.items,
        settings.schema,
        settings.users,
        on_bad_rows=settings.on_bad_rows,
      )
      held_out = _held_out(config, data)
      facts["rows"] = held_out.sizes()
      rewarded = int((data.rows.reward[held_out.train] > 0).sum())
      _check_rows(config, data, held_out.sizes(), rewarded)
      given = rankers.given(settings.ranker, data)
    notes = [note for note in data.notes if "have to be estimated" not in note]
    log_stage = data.fingerprint()
    if not data.has_propensities:
      estimated, log_stage = propensities.estimate(config, data, workspace)
      data = data.with_propensities(estimated.values)
      facts["propensities"] = {"estimated": True, **estimated.facts()}
      notes.append(estimated.note())
    parts = _parts(data, held_out)
  train = parts.train
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  rows = fingerprint(
    {
      "log": log_stage,
      "split": [settings.split, settings.validation_share, settings.test_share],
      "seed": config.environment_seed,
    }
  )
  reward_model = rankers.reward_model(config, tables, train, workspace, depends_on=rows)
  if given is not None:
    ranker = rankers.external_ranker(given, data, workspace)
  elif data.ranker_score is not None and held_out is not None:
    ranker = rankers.imitated(config, tables, data, held_out, workspace, depends_on=rows)
  else:
    ranker = reward_model.as_ranker()
  name = "user-log-" + fingerprint({"reward_model": reward_model.stage, "ranker": ranker.stage})
  # Combinations of features are not people, whose rows depend on each other.
  grouped = data.schema.user_id.embedded
  logs = {
    split: EvaluationLog(
      getattr(parts, split),
      data.num_items,
      f"{name}-{split}",
      (*notes, f"The log is the {split} rows of your own, which nothing was fitted on."),
      grouped=grouped,
    )
    for split in ("validation", "test")
  }
  return Environment(
    tables=tables,
    titles=data.titles,
    log=train,
    evaluator=HeldOutEvaluator(
      logs=logs,
      users=tables.users,
      reward_model=reward_model.expected_rewards,
      grouped=grouped,
    ),
    ranker_logits=ranker.logits,
    slate_ranker=ranker.of_slates,
    policies=_policies(config, parts, ranker.logits),
    requests=requests(
      data.schema,
      {feature: values[parts.first.user_index] for feature, values in data.users.items()},
      parts.first.context,
    ),
    name=name,
    facts={**facts, **ranker.facts},
    notes=(*notes, *ranker.notes),
    evaluation_log=lambda workspace: logs["test"],
  )


def _parts(data: BanditLog, held_out: Splits) -> LogParts:
  logs = {name: data.rows.select(mask) for name, mask in held_out.masks().items()}
  train = logs["train"]
  return LogParts(
    **logs,
    first=train.select(slice(0, FIRST)),
    earned=full_information.total_reward(train, data.num_items),
  )


def _policies(config: Config, parts: LogParts, ranker_logits: Scorer) -> dict[str, Scorer]:
  """What the generator is compared with, besides the logging policy.

  Popularity is one of the K items of the highest smoothed mean reward, at random: a list for
  everyone as a generator hands it on. Its best item alone would be shown by few rows.
  """
  num_items = len(parts.earned)
  means = full_information.smoothed_means(parts.train.shown(num_items), parts.earned)
  top = np.full(num_items, -np.inf)
  top[np.argsort(-means, kind="stable")[: config.slate_size]] = 0.0
  return {
    "popularity": full_information.list_scorer(top),
    "ranker, all items": ranker_logits,
    "random": full_information.list_scorer(np.zeros(num_items)),
  }


def _held_out(config: Config, data: BanditLog) -> Splits:
  settings = config.user_log
  return splits.split(
    settings.split,
    user_index=data.rows.user_index,
    time=data.time,
    labels=data.split_label,
    validation=settings.validation_share,
    test=settings.test_share,
    seed=config.environment_seed,
  )


def _check_settings(config: Config) -> None:
  if config.user_log.log is None:
    raise InputError(f"--dataset={DATASET} needs --log=FILE, the log to learn from")
  if config.data.dataset not in (DATASET, DataConfig().dataset):
    raise InputError(
      f"--dataset={config.data.dataset} and --log={config.user_log.log} are two data sets;"
      " leave one out"
    )
  for flag in ("environment", "data_dir"):
    value = getattr(config.data, flag)
    if value is not None:
      raise InputError(f"--{flag}={value} has no part in learning from --log; leave it out")


def _check_rows(config: Config, data: BanditLog, sizes: dict[str, int], rewarded: int) -> None:
  empty = [name for name, size in sizes.items() if not size]
  if empty:
    raise InputError(
      f"{data.name}: the split leaves no rows for {' and '.join(empty)}, of {sum(sizes.values())}"
      " (validation chooses the epoch, test is reported); raise --validation_share and"
      " --test_share, split otherwise, or label such rows"
    )
  if not rewarded:
    raise InputError(
      f"{data.name}: none of the {sizes['train']} training rows has a reward above 0, so there is"
      " nothing to learn; log more, or check which column is the reward"
    )
  if not 1 <= config.slate_size <= data.num_items:
    raise InputError(
      f"slate_size is {config.slate_size}, but the catalogue has {data.num_items} items: pick a"
      " number up to that"
    )
