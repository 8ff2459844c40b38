"""Kinds of features that columns look like, in DataFrames and in drafts alike."""

import numpy as np
import pandas as pd
import pytest

from tf_twostage.data import kinds


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    (np.arange(60) % 20, ("categorical", "")),  # codes
    (np.arange(63) % 21, ("numeric", "")),  # counts
    ([3, 1, 2, 2], ("numeric", "")),  # too few rows to tell
    (np.arange(60) % 2 + 0.5, ("numeric", "")),
    ([0.0, 1.0, np.nan, 1.0] * 5, ("categorical", "")),
    ([True, False], ("categorical", "")),
    (["AT", "FR", None], ("categorical", "")),
    ([f"title {i}" for i in range(21)], ("", "")),
    (["a|b", "c", "a"], ("bag", "|")),
    (["a;b", "c;a"], ("bag", ";")),
    (["a, b", "b, a", "c, a", "a, c"] * 2, ("bag", ",")),
    ([f"no. {i}, a sentence" for i in range(9)], ("categorical", "")),
    ([None, ["a", "b"], []], ("bag", "")),
    (pd.to_datetime(["2024-01-01"] * 3), ("", "")),
    ([None, None], ("", "")),
  ],
)
def test_the_kind_follows_from_the_values(values, expected):
  assert kinds.infer(pd.Series(values)) == expected
