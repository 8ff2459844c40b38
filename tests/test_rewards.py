import numpy as np
import pytest

from tf_twostage.data.rows import Rewards
from tf_twostage.rewards import from_logits, to_labels


@pytest.mark.parametrize(("largest", "scale"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (40.0, 40.0)])
def test_the_scale_is_the_largest_reward_but_at_least_1(largest, scale):
  assert Rewards(total=100.0, largest=largest).scale == scale


def test_a_label_is_a_share_of_the_scale_and_at_most_1():
  np.testing.assert_allclose(to_labels(np.array([0.0, 10.0, 40.0, 80.0]), 40.0), [0, 0.25, 1, 1])


def test_a_logit_of_a_label_is_an_expected_reward():
  labels = np.array([0.1, 0.5, 0.9])
  found = from_logits(np.log(labels / (1 - labels)), 40.0)
  np.testing.assert_allclose(found, 40.0 * labels, rtol=1e-12)
