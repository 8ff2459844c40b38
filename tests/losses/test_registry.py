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
    ("regression_ranking", losses.RegressionRanking),
    ("ips", losses.IPS),
    ("snips", losses.SNIPS),
    ("poem", losses.POEM),
    ("doubly_robust", losses.DoublyRobust),
    ("top_k", losses.TopK),
    ("two_stage_ips", losses.TwoStageIPS),
    ("two_stage_ltr", losses.TwoStageLTR),
    ("vanilla_policy_gradient", losses.VanillaPolicyGradient),
    ("weighted_log_likelihood", losses.WeightedLogLikelihood),
    ("exponential_smoothing", losses.ExponentialSmoothing),
    ("logarithmic_smoothing", losses.LogarithmicSmoothing),
    ("safe_slate", losses.SafeSlate),
  ],
)
def test_get_makes_the_loss_of_that_name(name, kind):
  assert type(losses.get(name)) is kind


def test_no_two_names_share_a_loss():
  assert len(set(losses.LOSSES.values())) == len(losses.LOSSES) == 15


def test_get_passes_options_on():
  assert losses.get("two_stage_ips", num_slates=7).num_slates == 7
  assert losses.get("snips", policy="two_stage", slate_size=7).slate_size == 7


def test_an_unknown_name_lists_the_known():
  for look_up in (losses.get, losses.options):
    with pytest.raises(InputError, match=r"unknown loss 'one_stage'.*cross_entropy.*ips"):
      look_up("one_stage")


def test_an_unknown_option_lists_the_options_of_that_loss():
  message = "'cross_entropy' has no option alpha, so it would change nothing; it has: policy"
  for look_up in (losses.get, lambda name, **given: losses.resolve(name, given)):
    with pytest.raises(InputError, match=re.escape(message)):
      look_up("cross_entropy", alpha=0.1)


@pytest.mark.parametrize(
  ("option", "value"), [("num_slates", 2.5), ("alpha", "1"), ("alpha", True)]
)
def test_an_option_of_another_type_is_refused(option, value):
  with pytest.raises(InputError, match=f"loss 'two_stage_ips': {option} must be of type"):
    losses.get("two_stage_ips", **{option: value})


def test_the_fields_of_importance_are_options_with_the_defaults_of_the_loss():
  assert losses.get("poem").importance == losses.get("poem", weight_cap=10).importance
  assert losses.resolve("poem", {})["weight_floor"] == 0.0
  given = losses.ImportanceWeights(floor=0.5)
  made = losses.get("ips", importance=given, weight_cap=5).importance
  assert made == losses.ImportanceWeights(cap=5.0, floor=0.5)


def test_parameters_are_attributes():
  for name in losses.LOSSES:
    loss = losses.get(name)
    assert all(hasattr(loss, parameter) for parameter in losses.LOSSES[name].parameters())


def test_only_losses_that_read_the_ranker_ask_for_it():
  asking = {name for name, kind in losses.LOSSES.items() if kind().needs_ranker}
  assert asking == {
    "doubly_robust",
    "two_stage_ips",
    "two_stage_ltr",
    "vanilla_policy_gradient",
  }


def test_a_loss_must_write_evaluate():
  with pytest.raises(NotImplementedError, match=r"OffPolicyLoss must write evaluate\(\)"):
    losses.OffPolicyLoss().terms(**batch())


OUTSIDE = "tests.losses.outside.Scaled"


def test_a_loss_from_outside_is_found_by_its_import_path():
  assert losses.options(OUTSIDE) == {"scale": losses.Option(float, 2.0, "factor of the loss.")}
  loss = losses.get(OUTSIDE, scale=3)
  assert type(loss).from_config(loss.get_config()).scale == 3.0
  x = batch()
  np.testing.assert_allclose(loss(**x), 3 * losses.get("cross_entropy")(**x), rtol=1e-12)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("tests.nowhere.Loss", "cannot import the loss 'tests.nowhere.Loss': No module named"),
    ("tests.losses.outside.Other", "cannot import the loss"),
    ("tf_twostage.config.Config", "is not a subclass of tf_twostage.losses.OffPolicyLoss"),
  ],
)
def test_a_path_without_a_loss_is_refused(name, message):
  with pytest.raises(InputError, match=message):
    losses.find(name)


def test_a_registered_loss_is_found_by_its_name(monkeypatch):
  monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
  scaled = losses.register("scaled")(losses.find(OUTSIDE))
  assert type(losses.get("scaled")) is scaled
  with pytest.raises(InputError, match="there is a loss 'scaled' already: Scaled"):
    losses.register("scaled")(losses.IPS)
