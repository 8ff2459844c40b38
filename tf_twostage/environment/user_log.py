"""The environment of a user's log: held-out rows of the log evaluate the generator."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.check import examine
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows, joined
from tf_twostage.data.streamed import TrainingRows
from tf_twostage.environment import rankers
from tf_twostage.environment.base import Environment, requests
from tf_twostage.environment.choices import choices
from tf_twostage.environment.streaming import FIRST, stream_log
from tf_twostage.errors import InputError
from tf_twostage.evaluation import examination, full_information, propensities
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.evaluator import Scorer
from tf_twostage.evaluation.held_out import HeldOutEvaluator
from tf_twostage.evaluation.slot_examination import Examination
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.external import ExternalRanker, RankerLike
from tf_twostage.workspace import Workspace, fingerprint

_log = logging.getLogger(__name__)

DATASET = "user_log"
_OF_ITEMS = "values are mean rewards of single items; `evaluate` estimates those of whole slates"


def user_log(config: Config, workspace: Workspace) -> Environment:
  """Reads the files of a log, holds rows out, and prepares propensities and ranker."""
  settings = config.user_log
  _check_settings(config)
  if settings.stream:
    with workspace.timed("data"):
      found = stream_log(config, workspace)
    _check_rows(config, found.data, found.sizes, len(found.train.positives()))
    ranker = _external(settings.ranker, found.data)
    facts = {"propensities": {"estimated": False}, "rows": found.sizes}
    return _environment(
      config,
      found.data,
      found.train,
      found.held_out,
      workspace,
      external=ranker,
      digest=found.digest,
      facts=facts,
      notes=found.data.notes,
    )
  with workspace.timed("data"):
    data = BanditLog.from_files(
      str(settings.log),
      items=settings.items,
      users=settings.users,
      schema=settings.schema,
      on_bad_rows=settings.on_bad_rows,
    )
  return log_environment(config, data, None, workspace, settings.ranker)


def log_environment(
  config: Config,
  data: BanditLog,
  validation: BanditLog | None,
  workspace: Workspace,
  ranker: RankerLike | None = None,
) -> Environment:
  """The environment of a log in memory; `validation` rows are of the same users and items.

  Without `validation`, `data` is split as configured. Without `ranker`, one is fitted to the log.
  """
  settings = config.user_log
  if validation is None:
    masks = data.masks(
      settings.split,
      validation=settings.validation_share,
      test=settings.test_share,
      seed=config.environment_seed,
    )
    if not settings.test_share and not masks["test"].any():
      del masks["test"]  # no test rows are wanted
    split: Any = [settings.split, settings.validation_share, settings.test_share]
  else:
    if validation.schema != data.schema:
      raise InputError(
        f"{data.name}: training and validation rows have different users or items; make one"
        " BanditLog of all rows and split it"
      )
    split = [len(data), len(validation)]
    held_out = np.repeat([False, True], split)
    masks = {"train": ~held_out, "validation": held_out}
    data = _stacked(data, validation)
  data = data.with_sequence_length(config.encoder.sequence_length)
  sizes = {name: int(mask.sum()) for name, mask in masks.items()}
  rewarded = int((data.rows.reward[masks["train"]] > 0).sum())
  _check_rows(config, data, sizes, rewarded)
  for problem in examine.unusable(data):
    _log.warning("%s: %s", data.name, problem)
  external = _external(ranker, data)
  logged, (data, slots, note) = data, _with_examination(config, data, workspace)
  if not data.impressions:
    parts = {name: data.select(mask) for name, mask in masks.items()}
    inputs = {"log": data.fingerprint(), "split": split, "seed": config.environment_seed}
    return choices(config, parts, workspace, external=external, digest=fingerprint(inputs))
  facts: dict[str, Any] = {"rows": sizes, "propensities": {"estimated": False}}
  notes = [text for text in logged.notes if "have to be estimated" not in text]
  if note:
    facts["examination"] = {"estimated": slots is not None, **(slots.facts() if slots else {})}
    notes.append(note)
  log_stage = logged.fingerprint()
  if not data.has_propensities:
    estimated, log_stage = propensities.estimate(config, logged, workspace)
    data, logged = (log.with_propensities(estimated.values) for log in (data, logged))
    facts["propensities"] = {"estimated": True, **estimated.facts()}
    notes.append(estimated.note())
  # Values of slates are of rewards as they were logged, and know of examination by slot alone.
  parts = logs = {name: data.select(mask) for name, mask in masks.items()}
  if slots is not None and not slots.position_based:
    logs = {name: logged.select(mask) for name, mask in masks.items()}
  inputs = {"log": log_stage, "split": split, "seed": config.environment_seed}
  digest = fingerprint(inputs | ({"examined": data.fingerprint()} if note else {}))
  return _environment(
    config,
    parts["train"],
    parts["train"].examined(),
    {name: log.examined() for name, log in parts.items() if name != "train"},
    workspace,
    external=external,
    digest=digest,
    facts=facts,
    notes=notes,
    logs=logs,
    slots=slots,
    slot_examination=data.slot_examination(),
  )


def _environment(
  config: Config,
  data: BanditLog,
  train: TrainingRows,
  held_out: Mapping[str, LogRows],
  workspace: Workspace,
  *,
  external: ExternalRanker | None,
  digest: str,
  facts: dict[str, Any],
  notes: Sequence[str],
  logs: Mapping[str, BanditLog] | None = None,
  slots: Examination | None = None,
  slot_examination: tuple[float, ...] | None = None,
) -> Environment:
  """The environment of rows that are split already.

  The rows of `data` are training rows in memory, at least the first of `train`. `digest` identifies
  all rows. `logs` are the parts with their ranker scores, if they are in memory.
  """
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  users, first = data.users_now(), data.rows.select(slice(0, FIRST))
  fitted, expected_rewards = rankers.fitted_to_rewards(
    config, tables, train, workspace, depends_on=digest
  )
  if external is not None:
    ranker = rankers.external_ranker(external, data, workspace)
  elif data.ranker_score is not None and logs is not None:
    scored = logs.get("test") or logs["validation"]
    ranker = rankers.imitated(config, tables, logs["train"], scored, workspace, depends_on=digest)
  else:
    ranker = fitted
  name = "user-log-" + fingerprint({"reward_model": fitted.stage, "ranker": ranker.stage})
  evaluated = {
    split: EvaluationLog(
      rows,
      data.num_items,
      f"{name}-{split}",
      (*notes, f"The log is the {split} rows of the user's log, which nothing was fitted on."),
      grouped=data.schema.user_id.embedded,
      user_ids=data.schema.user_id.vocabulary,
      slate_log=None if logs is None or data.slate is None else logs[split],
    )
    for split, rows in held_out.items()
  }
  for split, log in evaluated.items():
    if log.num_units == 1:
      _log.warning("%s: one user is left for %s; errors of estimates need two", data.name, split)
  return Environment(
    tables=tables,
    users=users,
    titles=data.titles,
    log=train,
    evaluator=HeldOutEvaluator(evaluated, tables.users, expected_rewards),
    ranker_logits=ranker.logits,
    slate_ranker=ranker.of_slates,
    trainable_ranker=ranker.trainable,
    policies=_policies(config, train, data.num_items, ranker.logits),
    requests=requests(
      data.schema,
      {feature: values[first.user_index] for feature, values in users.items()},
      first.context,
    ),
    name=name,
    facts={**facts, **ranker.facts},
    notes=(*notes, *ranker.notes, *([] if data.slate is None else [_OF_ITEMS])),
    examination=slots,
    slot_examination=slot_examination,
    evaluation_log=lambda workspace: evaluated.get("test") or evaluated["validation"],
  )


def _with_examination(
  config: Config, data: BanditLog, workspace: Workspace
) -> tuple[BanditLog, Examination | None, str]:
  """The log with examination, the estimate if there is one, and a note for readers.

  A column of the log wins; slates without it get an estimate, and other logs none.
  """
  settings = config.user_log
  method, asked = settings.examination or "auto", settings.examination or settings.trust_bias
  if asked and data.slate is None and data.examination is None:
    raise InputError(
      f"{data.name}: the log has no slates, so examination and trust_bias change nothing; leave"
      " them out, or name the columns slate_id and position"
    )
  if method == "none":
    note = "rewards are not corrected for the examination of slots"
    return dataclasses.replace(data, examination=None), None, note
  if data.examination is not None:
    if asked:
      raise InputError(
        f"{data.name}: the log has a column of examination, which is used; leave the"
        " settings examination and trust_bias out, or the column"
      )
    note = "rewards are divided by the examination of their slots, a column of the log"
    return data, None, note
  if data.slate is None:
    return data, None, ""
  found, _ = examination.estimate(config, data, workspace)
  return found.apply(data), found, found.note()


def _external(ranker: RankerLike | None, data: BanditLog) -> ExternalRanker | None:
  """The ranker, checked on a few pairs before anything is trained."""
  if ranker is None:
    return None
  found = ExternalRanker(ranker, data.schema, data.items)
  found.check(data.users)
  return found


def _stacked(train: BanditLog, validation: BanditLog) -> BanditLog:
  """Training rows, then validation rows."""

  def both(name: str) -> np.ndarray | None:
    parts = [getattr(log, name) for log in (train, validation)]
    return None if any(part is None for part in parts) else np.concatenate(parts)

  slate = both("slate")
  if slate is not None:  # numbers of one part are not those of the other
    slate[len(train) :] += slate[: len(train)].max() + 1
  same = train.policies == validation.policies
  return dataclasses.replace(
    train,
    rows=joined([train.rows, validation.rows]),
    policies=train.policies if same else (),
    policy=both("policy") if same else None,
    policy_propensities=None,  # either part keeps the propensities that it has
    time=None,
    split_label=None,
    ranker_score=both("ranker_score"),
    slate=slate,
    examination=both("examination"),
    cascade_propensity=both("cascade_propensity"),
  )


def _policies(
  config: Config, train: TrainingRows, num_items: int, ranker_logits: Scorer
) -> dict[str, Scorer]:
  """Baselines, besides the logging policy.

  Popularity shows one of the K items with the highest smoothed mean reward at random, as a
  generator hands K items on. Few rows would show its best item alone.
  """
  means = full_information.popularity(train, num_items)
  # Where none of the K items could be shown, the others share the probability.
  top = np.full(num_items, -np.inf if train.catalogues is None else -100.0)
  top[np.argsort(-means, kind="stable")[: config.slate_size]] = 0.0
  return {
    "popularity": full_information.list_scorer(top),
    "ranker, all items": ranker_logits,
    "random": full_information.list_scorer(np.zeros(num_items)),
  }


def _check_settings(config: Config) -> None:
  if config.user_log.log is None:
    raise InputError(f"dataset {DATASET} needs a log: set `log` to the file to learn from")
  if config.data.dataset != DATASET:
    raise InputError(
      f"dataset {config.data.dataset} and log {config.user_log.log} are two data sets; leave one"
      " out"
    )
  if config.simulation.simulate is not None:
    raise InputError("simulate: a log is not simulated; leave it out")
  if config.data.history:
    raise InputError("history: name it in the schema, as a user feature of the kind sequence")
  for name in ("environment", "data_dir"):
    value = getattr(config.data, name)
    if value is not None:
      raise InputError(f"{name} {value} is not used when learning from a log; leave it out")


def _check_rows(config: Config, data: BanditLog, sizes: dict[str, int], rewarded: int) -> None:
  if config.simulation.log_number:
    raise InputError(
      f"log_number is {config.simulation.log_number}, but a log of your own is the only one; leave"
      " it out"
    )
  if not sizes["validation"]:
    raise InputError(
      f"{data.name}: validation rows choose the epoch, but validation_share is 0; raise it"
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
