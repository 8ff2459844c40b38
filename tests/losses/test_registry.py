import re

import numpy as np
import pytest

from tests.losses.helpers import batch
from tf_twostage import losses
from tf_twostage.errors import InputError


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("cross_entropy", losses.CrossEntropy),
    ("binary_cross_entropy", losses.BinaryCrossEntropy),
    ("ips", losses.IPS),
    ("snips", losses.SNIPS),
    ("poem", losses.POEM),
    ("doubly_robust", losses.DoublyRobust),
    ("top_k", losses.TopK),
    ("two_stage_ips", losses.TwoStageIPS),
  ],
)
def test_get_makes_the_loss_of_that_name(name, kind):
  assert type(losses.get(name)) is kind


def test_no_two_names_share_a_loss():
  assert len(set(losses.LOSSES.values())) == len(losses.LOSSES) == 8


def test_get_passes_options_on():
  assert losses.get("two_stage_ips", num_slates=7).num_slates == 7
  assert losses.get("snips", policy="two_stage", slate_size=7).slate_size == 7


def test_an_unknown_name_lists_the_known():
  for look_up in (losses.get, losses.options):
    with pytest.raises(InputError, match=r"unknown loss 'one_stage'.*cross_entropy.*ips"):
      look_up("one_stage")


def test_an_unknown_option_lists_the_options_of_that_loss():
  message = "'ips' has no option alpha; it has: importance, policy, slate_size, baseline"
  with pytest.raises(InputError, match=re.escape(message)):
    losses.get("ips", alpha=0.1)


def test_options_are_attributes():
  for name in losses.LOSSES:
    loss = losses.get(name)
    assert all(hasattr(loss, option) for option in losses.options(name))


def test_only_losses_that_read_the_ranker_ask_for_it():
  asking = {name for name, kind in losses.LOSSES.items() if kind().needs_ranker}
  assert asking == {"doubly_robust", "two_stage_ips"}


def test_a_loss_must_write_evaluate():
  with pytest.raises(NotImplementedError, match=r"OffPolicyLoss must write evaluate\(\)"):
    losses.OffPolicyLoss().terms(**batch())


def test_a_new_loss_writes_evaluate_alone():
  class Square(losses.OffPolicyLoss):
    def __init__(self, scale: float = 2.0, **kwargs):
      super().__init__(**kwargs)
      self.scale = scale

    def evaluate(self, x):
      return losses.LossTerms(self.scale * x.rewards**2)

  x = batch()
  assert Square.options() == ("scale",)
  assert Square.from_config(Square(scale=3.0).get_config()).scale == 3.0
  np.testing.assert_allclose(Square(scale=3.0)(**x), 3 * x["rewards"] ** 2)
