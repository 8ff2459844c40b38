"""An environment of people who rated every item: only the logging is simulated."""

from __future__ import annotations

import numpy as np

from tf_twostage.config import Config
from tf_twostage.data.rows import LogRows
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.environment.base import Environment
from tf_twostage.environment.full_information import FullInformation
from tf_twostage.environment.simulated import of_labels
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.workspace import Workspace


def complete_ratings(config: Config, data: RatingsData, workspace: Workspace) -> Environment:
  """Logs and evaluates the complete users; the others fit the logging policy and the ranker."""
  if config.data.environment:
    raise InputError(
      f"environment={config.data.environment} replaces a simulation; leave it out, the ratings of"
      f" {data.name} are complete"
    )
  assert data.rating is not None
  above, first = config.data.positive_above, data.num_users - data.complete_users
  liked, complete = data.rating > above, data.user_index >= first
  labels = np.zeros((data.complete_users, data.num_items), bool)
  labels[data.user_index[complete] - first, data.item_index[complete]] = liked[complete]
  rate = labels.mean()
  if rate in (0, 1):
    raise InputError(
      f"{data.name}: {'all' if rate else 'no'} ratings are above {above:g}; choose another"
      " positive_above"
    )
  propensity = np.full(len(data), 1 / data.num_items, np.float32)
  rows = LogRows(data.user_index, data.item_index, propensity, liked.astype(np.float32))
  return of_labels(
    config,
    data,
    EncodedTables.encode(data.schema, data.users, data.items),
    FullInformation(labels, labels),
    workspace,
    depends_on=f"{data.fingerprint()}, {data.complete_users} complete, above {above}",
    drawn_contexts=lambda users, items: {},
    context={},
    facts={"positive_rate": float(rate)},
    others=rows.select(~complete),
  )
