"""Metrics: how scores are called, shown and selected by."""

import numpy as np
import pytest

from tf_twostage import metrics
from tf_twostage.metrics import Metric


def test_numbers_are_rounded_and_have_their_error_where_known():
  metric = Metric("value", factor=1.0, decimals=3)
  assert metric.text(0.12345) == "0.123"
  assert metric.text(0.12345, 0.0567) == "0.123 ± 0.057"
  assert metric.text(0.12345, np.nan) == "0.123"


@pytest.mark.parametrize(
  ("metrics_of", "title", "caption"),
  [
    (metrics.FULL_INFORMATION, "Test users, both (%)", "precision@10, validation users, %"),
    (
      metrics.HELD_OUT,
      "Test rows, both (mean reward of an item)",
      "snips, validation rows, mean reward of an item",
    ),
  ],
)
def test_tables_and_axes_name_what_is_held_out(metrics_of, title, caption):
  assert metrics_of.title("both") == title
  assert metrics_of.caption("validation") == caption


@pytest.mark.parametrize(
  ("metrics_of", "factor"), [(metrics.FULL_INFORMATION, 100), (metrics.HELD_OUT, 1)]
)
def test_a_metric_of_no_table_is_shown_as_the_headline_is(metrics_of, factor):
  assert metrics_of.shown({"unheard of": 0.5}, "unheard of") == 0.5 * factor
  assert metrics_of.shown({metrics_of.headline: 0.25}, metrics_of.headline) == 0.25 * factor
