"""Simulated slates: what is shown in which slot, what is examined, and the propensity of that."""

import numpy as np
import pytest

from tests.oracle import softmax
from tf_twostage.config import SimulationConfig
from tf_twostage.environment.simulated_log import simulate_log
from tf_twostage.errors import InputError

USERS, ITEMS, SLOTS, SLATES = 2000, 5, 3, 4
RNG = np.random.default_rng(0)
VECTORS = (
  np.repeat(RNG.normal(size=(4, 2)), USERS // 4, axis=0).astype(np.float32),
  RNG.normal(size=(ITEMS, 2)).astype(np.float32),
)
SHARPNESS = (2.0, 1.25, 0.5)


def log(**options):
  return simulate_log(
    VECTORS,
    lambda users, items: (np.ones(len(items), np.float32), {}),
    items_per_user=SLOTS * SLATES,
    replacement=True,
    seed=3,
    slots=SLOTS,
    **options,
  )


LOG = log()


def chances():
  """P(item in slot k) of every user, [U, N, L]."""
  logits = VECTORS[0] @ VECTORS[1].T
  return np.stack([softmax(logits * sharpness) for sharpness in SHARPNESS], axis=2)


def test_slates_have_every_slot_once():
  np.testing.assert_array_equal(LOG.position.reshape(-1, SLOTS) - np.arange(SLOTS), 0)


@pytest.mark.parametrize("slot", range(SLOTS))
def test_upper_slots_are_drawn_from_a_surer_policy(slot):
  first = LOG.user_index < USERS // 4  # users alike
  shown = LOG.action[first & (LOG.position == slot)]
  share = np.bincount(shown, minlength=ITEMS) / len(shown)
  np.testing.assert_allclose(share, chances()[0, :, slot], atol=4.5 * 0.5 / np.sqrt(len(shown)))


@pytest.mark.parametrize("slot", range(SLOTS))
def test_a_slot_is_rewarded_as_often_as_it_is_examined(slot):
  rewards = LOG.reward[LOG.position == slot]
  np.testing.assert_allclose(rewards.mean(), 1 / (slot + 1), atol=2.5 / np.sqrt(len(rewards)))


def test_the_propensity_is_that_of_exposure():
  exposure = chances() @ (1 / np.arange(1, SLOTS + 1))
  np.testing.assert_allclose(
    LOG.propensity, np.minimum(exposure[LOG.user_index, LOG.action], 1), rtol=1e-5
  )


def test_a_position_blind_log_differs_in_the_propensity_alone():
  blind = log(position_blind=True)
  for column in ("action", "reward", "position"):
    np.testing.assert_array_equal(getattr(blind, column), getattr(LOG, column))
  shown = np.minimum(chances().sum(axis=2), 1)
  np.testing.assert_allclose(blind.propensity, shown[LOG.user_index, LOG.action], rtol=1e-5)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"position_blind": True}, "position_blind changes nothing without slots"),
    ({"slots": 3, "items_per_user": 5}, r"slots=3 needs whole slates .* items_per_user \(5\)"),
    ({"slots": 5, "replacement": False}, "leave replacement on"),
  ],
)
def test_settings_that_make_no_slates_are_refused(settings, message):
  with pytest.raises(InputError, match=message):
    SimulationConfig(**settings)
