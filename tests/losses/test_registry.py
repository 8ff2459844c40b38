import re

import pytest

from tf_twostage import losses
from tf_twostage.errors import InputError


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("cross_entropy", losses.CrossEntropy),
    ("binary_cross_entropy", losses.BinaryCrossEntropy),
    ("ips", losses.IPS),
    ("two_stage_ips", losses.TwoStageIPS),
  ],
)
def test_get_makes_the_loss_of_that_name(name, kind):
  assert type(losses.get(name)) is kind


def test_get_passes_options_on():
  assert losses.get("two_stage_ips", num_slates=7).num_slates == 7


def test_an_unknown_name_lists_the_known():
  with pytest.raises(InputError, match="unknown loss 'one_stage'.*" + "cross_entropy.*ips"):
    losses.get("one_stage")


def test_an_unknown_option_lists_the_options_of_that_loss():
  with pytest.raises(InputError, match=re.escape("'ips' has no option alpha; it has: importance")):
    losses.get("ips", alpha=0.1)


def test_a_loss_without_options_says_so():
  with pytest.raises(InputError, match="it has: none"):
    losses.get("cross_entropy", cap=1.0)


def test_only_losses_that_read_the_ranker_ask_for_it():
  asking = {name for name, kind in losses.LOSSES.items() if kind.needs_ranker}
  assert asking == {"two_stage_ips"}


def test_a_loss_must_write_terms():
  with pytest.raises(NotImplementedError, match=r"OffPolicyLoss must write terms\(\)"):
    losses.OffPolicyLoss().terms(None, None, None, None)
