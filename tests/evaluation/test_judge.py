"""Measures: how scores are called, shown and selected by."""

import numpy as np
import pytest

from tf_twostage.evaluation import held_out, protocol
from tf_twostage.evaluation.judge import Measure


def test_numbers_are_rounded_and_have_their_error_where_known():
  measure = Measure("value", factor=1.0, decimals=3)
  assert measure.text(0.12345) == "0.123"
  assert measure.text(0.12345, 0.0567) == "0.123 ± 0.057"
  assert measure.text(0.12345, np.nan) == "0.123"


@pytest.mark.parametrize(
  ("measures", "title", "caption"),
  [
    (protocol.MEASURES, "Test users, both (%)", "precision@10, validation users, %"),
    (held_out.MEASURES, "Test rows, both (mean reward)", "snips, validation rows, mean reward"),
  ],
)
def test_tables_and_axes_are_named_after_what_is_judged(measures, title, caption):
  assert measures.title("both") == title
  assert measures.caption("validation") == caption


@pytest.mark.parametrize(("measures", "factor"), [(protocol.MEASURES, 100), (held_out.MEASURES, 1)])
def test_a_metric_of_no_table_is_shown_as_the_headline_is(measures, factor):
  assert measures.shown({"unheard of": 0.5}, "unheard of") == 0.5 * factor
  assert measures.shown({measures.headline: 0.25}, measures.headline) == 0.25 * factor
