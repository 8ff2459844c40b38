"""What a threshold costs and finds: the two curves of the paper, on users of the log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import tensorflow as tf

from tf_twostage import plotting
from tf_twostage.casmos.index import InvertedIndex
from tf_twostage.casmos.queries import StructuredQueries
from tf_twostage.data.rows import LogRows
from tf_twostage.environment.base import Environment
from tf_twostage.evaluation.evaluation_log import model_inputs

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_USERS, _TOP = 200, 10
_LOST = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # shares of the best items below the thresholds


def measured(model: StructuredQueries, environment: Environment, log: LogRows) -> pd.DataFrame:
  """By threshold, the means over users of the log, with the index on one core.

  Returns:
    columns threshold; scored, the share of the catalogue that passes; recall, the share of the
    ranker's ten best items that passes; touched, the share of the index's entries that are read;
    milliseconds, of a query.
  """
  rows = np.unique(log.user_index, return_index=True)[1]
  inputs = model_inputs(log, rows[:: -(-len(rows) // _USERS)], environment.tables.users)
  queries, items = model.query(inputs["user"]).numpy().astype(float), model.candidates().numpy()
  best = tf.math.top_k(environment.ranker_logits(inputs), min(_TOP, len(items))).indices.numpy()
  scores = np.einsum("ut,ukt->uk", queries, items[best])
  index, entries, num_items = InvertedIndex(items), np.count_nonzero(items), len(items)
  # The index finds no items without a matched term, whose scores are 0.
  found = []
  for threshold in np.unique(np.quantile(scores, _LOST, method="lower")):
    threshold = max(threshold, np.finfo(float).eps)
    start = time.perf_counter()
    answers = [index.search(query, threshold) for query in queries]
    seconds = time.perf_counter() - start
    found.append(
      {
        "threshold": threshold,
        "scored": np.mean([len(answer.items) for answer in answers]) / num_items,
        "recall": np.mean(scores >= threshold),
        "touched": np.mean([answer.touched for answer in answers]) / entries,
        "milliseconds": 1000 * seconds / len(queries),
      }
    )
  return pd.DataFrame(found)


def draw(curve: pd.DataFrame) -> Figure:
  """Recall of the ranker's best items against what is scored, and against what is read."""
  figure = plotting.figure(11, 4.5)
  for axis, (column, label) in zip(
    figure.subplots(1, 2, sharey=True),
    {"scored": "items that pass, %", "touched": "index entries read, %"}.items(),
    strict=True,
  ):
    axis.plot(100 * curve[column], 100 * curve["recall"], ".-", color=plotting.COLORS[0])
    axis.set(xlabel=label, ylabel="recall of the ranker's top 10, %")
  return figure
