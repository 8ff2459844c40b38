"""Open Bandit Pipeline's dict becomes a log."""

import numpy as np
import pytest

from tf_twostage.data.log import BanditLog
from tf_twostage.errors import InputError


def feedback(**changes):
  """Six rounds of three contexts and two actions."""
  whole = {
    "n_rounds": 6,
    "n_actions": 2,
    "context": np.array([[0.5, 1.0], [2.0, -1.0], [0.5, 3.0]] * 2),
    "action_context": np.array([[1.0, 5.0], [0.0, 7.0]]),
    "action": np.array([0, 1, 1, 0, 0, 1]),
    "position": np.array([0, 1, 2, 0, 1, 2]),
    "reward": np.array([1, 0, 0, 1, 0, 1]),
    "expected_reward": np.full((6, 2), 0.5),
    "pscore": np.array([0.25, 0.75, 0.5, 0.5, 0.5, 1.0]),
  }
  return {k: v for k, v in {**whole, **changes}.items() if v is not KeyError}


def test_contexts_are_users_and_actions_are_items():
  given = feedback()
  data = BanditLog.from_bandit_feedback(given)
  assert (data.num_users, data.num_items, len(data.rows)) == (3, 2, 6)
  for i in range(2):
    seen = data.users[f"context_{i}"][data.rows.user_index]
    np.testing.assert_array_equal(seen, given["context"][:, i])
    np.testing.assert_array_equal(data.items[f"action_context_{i}"], given["action_context"][:, i])
  np.testing.assert_array_equal(data.rows.action, given["action"])
  np.testing.assert_array_equal(data.rows.propensity, given["pscore"])
  np.testing.assert_array_equal(data.rows.position, given["position"])
  np.testing.assert_array_equal(data.titles, ["0", "1"])
  assert [f.name for f in data.schema.user_inputs] == ["context_0", "context_1"]


@pytest.mark.parametrize("arms", [None, np.eye(2), KeyError])
def test_one_hot_action_contexts_are_left_out(arms):
  data = BanditLog.from_bandit_feedback(feedback(action_context=arms))
  assert list(data.items) == ["item_id"]


def test_pscore_and_position_may_be_missing():
  data = BanditLog.from_bandit_feedback(feedback(pscore=None, position=KeyError))
  assert not data.has_propensities
  assert data.rows.position is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"reward": KeyError}, r"missing key\(s\) \['reward'\]; found \['action'"),
    ({"context": np.zeros(6)}, r"context must be \[6, d\] numbers"),
    ({"context": np.full((6, 1), np.nan)}, "context must be finite; 6 of 6 rows"),
    (
      {"n_rounds": 5, "context": np.zeros((5, 1))},
      r"action must have the shape \(5,\), got \(6,\)",
    ),
    (
      {"action": np.array([0, 1, 2, 0, 0, 1])},
      "'action' must name a known item.*; 1 of 6 rows .*row 2, value '2'",
    ),
    ({"action": np.full(6, 0.5)}, "'action' must name a known item.*; 6 of 6"),
    ({"pscore": np.zeros(6)}, r"'pscore' must lie in \(0, 1\]"),
    ({"action_context": np.zeros((3, 1))}, r"action_context must be \[2, d\]"),
  ],
)
def test_a_dict_that_does_not_fit_is_refused(changes, message):
  with pytest.raises(InputError, match=message):
    BanditLog.from_bandit_feedback(feedback(**changes))
