"""The environment of ratings or orders: what users choose later evaluates the generator.

Nobody logged what else was shown, so that nothing can be estimated off-policy. Metrics of ranking
measure how well later choices are predicted, not what recommendations would earn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tf_twostage.config import Config
from tf_twostage.data.histories import earlier
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows, joined
from tf_twostage.environment import rankers
from tf_twostage.environment.base import Environment, requests
from tf_twostage.errors import InputError
from tf_twostage.evaluation import exposures, full_information
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.full_information import ChoicesEvaluator
from tf_twostage.models.encoders import Codes, EncodedTables
from tf_twostage.models.external import ExternalRanker
from tf_twostage.models.ranker import usual_logit
from tf_twostage.workspace import Workspace, fingerprint

_DRAWN = 4  # items that a user did not choose, for each row of the ranker
_PAIRS = 2**27  # users times items that are evaluated, a byte each in two arrays
_NOTE = (
  "the log holds ratings or orders, and not what was shown: metrics tell how well later choices of"
  " items new to a user are predicted, not what recommendations would earn"
)


def choices(
  config: Config,
  logs: Mapping[str, BanditLog],
  workspace: Workspace,
  *,
  external: ExternalRanker | None,
  digest: str,
) -> Environment:
  """The environment of the parts of a log without impressions.

  The second stage is a two-tower model that tells rewarded rows from others and from pairs of the
  same users with items drawn uniformly, unless `external` is given. Propensities are estimated
  exposures.

  Args:
    config: the settings.
    logs: by name: "train", "validation" and perhaps "test".
    workspace: for stages.
    external: a ranker made elsewhere.
    digest: identifies all rows.
  """
  data, seed = logs["train"], config.environment_seed
  held_out, past, notes = _held_out(logs, seed)
  users, relevance, excluded, num_validation = held_out
  exposed = exposures.estimate(data.rows.action, data.time, data.num_items)
  train = data.with_propensities(exposed.values).rows
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  if external is not None:
    ranker = rankers.external_ranker(external, data, workspace)
  else:
    rows = _with_drawn(train, data.num_items, seed)
    ranker = rankers.fitted_ranker(
      config,
      tables,
      rows,
      workspace,
      depends_on=f"{digest}, {_DRAWN} drawn",
      prior=usual_logit(rows.rewards().total, len(rows)),
    )
  means = {name: np.full(len(users), v.mean()) for name, v in train.context.items()}
  popularity = train.earned(data.num_items)
  return Environment(
    tables=tables,
    users=data.users_now(),
    titles=data.titles,
    log=train,
    evaluator=ChoicesEvaluator(
      inputs={
        "user": {**{n: tf.gather(c, users) for n, c in tables.users.items()}, **past},
        "context": means,
        "user_index": users,
      },
      relevance=relevance,
      excluded=excluded,
      num_validation=num_validation,
    ),
    ranker_logits=ranker.logits,
    slate_ranker=ranker.of_slates,
    item_bias=np.log((popularity + 1) / (popularity.mean() + 1)),
    policies={
      "popularity": full_information.list_scorer(popularity),
      "popularity, latest": full_information.list_scorer(exposed.latest),
      "ranker, all items": ranker.logits,
      "random": full_information.random_scorer(data.num_items, seed),
    },
    requests=requests(
      data.schema, {name: v[users] for name, v in data.users_now().items()}, means, excluded
    ),
    name="choices-" + fingerprint({"log": digest, "ranker": ranker.stage}),
    facts={
      "rows": {name: len(log) for name, log in logs.items()},
      "exposures": exposed.facts(),
      **ranker.facts,
    },
    notes=(*data.notes, _NOTE, exposed.note(), *notes, *ranker.notes),
    evaluation_log=lambda _: EvaluationLog.of(data),
  )


def _with_drawn(rows: LogRows, num_items: int, seed: int) -> LogRows:
  """The rows, and for each rewarded one unrewarded pairs of its user with items drawn uniformly."""
  again = rows.select(np.repeat(np.flatnonzero(rows.reward > 0), _DRAWN))
  drawn = np.random.default_rng(seed).integers(num_items, size=len(again), dtype=np.int32)
  zeros = np.zeros(len(again), np.float32)
  return joined([rows, dataclasses.replace(again, action=drawn, reward=zeros)])


def _held_out(
  logs: Mapping[str, BanditLog], seed: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, int], Codes, list[str]]:
  """What users chose in the held-out parts, of items that they had no row of before.

  Returns:
    Users [E], those of validation first; their choices [E, N] bool; what they had rows of before
    [E, N] bool; and the number of those of validation. Their histories before the part, [E, L] by
    name. Notes on users that were left out.
  """
  rng, parts, notes = np.random.default_rng(seed), [], []
  names = [name for name in ("validation", "test") if name in logs]
  known, time = logs["train"].rows, logs["train"].time
  pasts: dict[str, list[np.ndarray]] = {name: [] for name in known.histories}
  num_users, num_items = logs["train"].num_users, logs["train"].num_items
  limit = max(1, _PAIRS // num_items // len(names))
  for name in names:
    rows = logs[name].rows
    users = np.unique(rows.user_index[rows.reward > 0])
    if len(users) > limit:
      notes.append(f"metrics are of {limit} of the {len(users)} {name} users, drawn at random")
      users = np.sort(rng.choice(users, limit, replace=False))
    excluded = _pairs(known, users, num_users, num_items)
    chosen = _pairs(rows.positives(), users, num_users, num_items) & ~excluded
    some = chosen.any(axis=1)
    if not some.any():
      raise InputError(
        f"{logs[name].name}: no user chooses an item in the {name} rows that is new to them, and"
        " nothing can be evaluated; raise the share, or split otherwise"
      )
    parts.append((users[some].astype(np.int32), chosen[some], excluded[some]))
    for feature, past in pasts.items():
      assert time is not None  # a history needs it
      length = known.histories[feature].length
      before = earlier(known.user_index, known.action, time, known.reward > 0, num_users=num_users)
      codes = dataclasses.replace(before.of_users(), length=length).padded(users[some])
      past.append(codes.numpy())
    known = joined([known, rows])
    time = None if time is None else np.concatenate([time, logs[name].time])
  users, chosen, excluded = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
  codes = {feature: np.concatenate(past) for feature, past in pasts.items()}
  return (users, chosen, excluded, len(parts[0][0])), codes, notes


def _pairs(rows: LogRows, users: np.ndarray, num_users: int, num_items: int) -> np.ndarray:
  """Which items some users have rows of, [E, N] bool."""
  place = np.full(num_users, -1)
  place[users] = np.arange(len(users))
  at = place[rows.user_index]
  pairs = np.zeros((len(users), num_items), bool)
  pairs[at[at >= 0], rows.action[at >= 0]] = True
  return pairs
