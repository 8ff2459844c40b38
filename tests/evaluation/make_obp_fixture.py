"""Writes what Open Bandit Pipeline computes on the Open Bandit Dataset to obp_0_5_7.json.

Run it from the repository's root in an environment of its own that holds obp 0.5.7 (which needs
older packages than this library, and PyTorch, which obp imports), with the directory that
`TF_TWOSTAGE_TEST_DATA` names:

    python -m tests.evaluation.make_obp_fixture DIR
"""

import json
import pathlib
import platform
import sys

import numpy as np

from tests.evaluation import slate_arrays
from tests.evaluation.open_bandit_arrays import (
  GRID,
  NUM_ITEMS,
  NUM_POSITIONS,
  PAIRS,
  THRESHOLD,
  Problem,
  pooled,
  problem,
)

FIXTURE = pathlib.Path(__file__).parent / "obp_0_5_7.json"


def values(x: Problem) -> dict[str, float]:
  """The values that OBP's estimators give, under this library's names."""
  from obp import ope

  estimators = {
    "dm": ope.DirectMethod(),
    "ips": ope.InverseProbabilityWeighting(),
    "clipped_ips": ope.InverseProbabilityWeighting(lambda_=THRESHOLD),
    "snips": ope.SelfNormalizedInverseProbabilityWeighting(),
    "dr": ope.DoublyRobust(),
    "sndr": ope.SelfNormalizedDoublyRobust(),
    "switch_dr": ope.SwitchDoublyRobust(lambda_=THRESHOLD),
    "dros": ope.DoublyRobustWithShrinkage(lambda_=THRESHOLD),
  }
  tuned = {
    "slope_ips": ope.InverseProbabilityWeightingTuning,
    "slope_switch_dr": ope.SwitchDoublyRobustTuning,
    "slope_dros": ope.DoublyRobustWithShrinkageTuning,
  }
  arrays = _arrays(x)
  found = {name: e.estimate_policy_value(**arrays) for name, e in estimators.items()}
  for name, kind in tuned.items():
    estimator = kind(lambdas=list(GRID), tuning_method="slope")
    found[name] = estimator.estimate_policy_value_with_tuning(**arrays)
  return {name: float(value) for name, value in found.items()}


def balanced_values(x: Problem, propensities: np.ndarray) -> dict[str, float]:
  """The same for rows of several logging policies, with their balanced propensities [n]."""
  from obp import ope

  estimators = {
    "ips": ope.MultiLoggersBalancedInverseProbabilityWeighting(),
    "clipped_ips": ope.MultiLoggersBalancedInverseProbabilityWeighting(lambda_=THRESHOLD),
    "dr": ope.MultiLoggersBalancedDoublyRobust(),
  }
  arrays = _arrays(x) | {"pscore_avg": propensities}
  del arrays["pscore"]
  return {name: float(e.estimate_policy_value(**arrays)) for name, e in estimators.items()}


def slate_values() -> dict[str, float]:
  """The values of slates that OBP's estimators give, under this library's names."""
  from obp import ope

  world = slate_arrays.World(seed=0)
  contexts, which, rewards = world.draw(400, 3)
  returns = np.random.default_rng(4).uniform(
    size=(slate_arrays.CONTEXTS, slate_arrays.SLOTS, slate_arrays.ITEMS)
  )
  x = world.columns(contexts, which, returns)
  slots = rewards.shape[1]
  whole = {name: np.repeat(x[name][:, -1], slots) for name in x if "cascade" in name}
  arrays = {
    "slate_id": np.repeat(np.arange(len(rewards)), slots),
    "position": np.tile(np.arange(slots), len(rewards)),
    "reward": rewards.ravel(),
    "action": slate_arrays.SLATES[which].ravel(),
    "pscore": whole["cascade_propensities"],
    "evaluation_policy_pscore": whole["target_cascade"],
    "pscore_item_position": x["propensities"].ravel(),
    "evaluation_policy_pscore_item_position": x["target_probabilities"].ravel(),
    "pscore_cascade": x["cascade_propensities"].ravel(),
    "evaluation_policy_pscore_cascade": x["target_cascade"].ravel(),
    "q_hat": returns[contexts].ravel(),
    "evaluation_policy_action_dist": world.conditional[contexts, which].ravel(),
  }
  estimators = {
    "sips": ope.SlateStandardIPS(len_list=slots),
    "snsips": ope.SelfNormalizedSlateStandardIPS(len_list=slots),
    "iips": ope.SlateIndependentIPS(len_list=slots),
    "sniips": ope.SelfNormalizedSlateIndependentIPS(len_list=slots),
    "rips": ope.SlateRewardInteractionIPS(len_list=slots),
    "snrips": ope.SelfNormalizedSlateRewardInteractionIPS(len_list=slots),
    "cascade_dr": ope.SlateCascadeDoublyRobust(len_list=slots, n_unique_action=slate_arrays.ITEMS),
  }
  return {name: float(e.estimate_policy_value(**arrays)) for name, e in estimators.items()}


def _arrays(x: Problem) -> dict[str, np.ndarray]:
  """The arguments of OBP's estimators."""
  n = len(x.actions)
  # OBP reads each row at its position only.
  predicted = np.zeros((n, NUM_ITEMS, NUM_POSITIONS))
  predicted[np.arange(n), :, x.positions] = x.predicted_rewards
  return {
    "reward": x.rewards,
    "action": x.actions,
    "pscore": x.propensities,
    "position": x.positions,
    "action_dist": np.tile(x.policy, (n, 1, 1)),
    "estimated_rewards_by_reg_model": predicted,
  }


def mixture(loggers: np.ndarray, propensities: dict[str, np.ndarray]) -> np.ndarray:
  """The mean over rows' loggers of each row's propensity, [n]."""
  return sum((loggers == name).mean() * own for name, own in propensities.items())


def main() -> None:
  import obp

  root = pathlib.Path(sys.argv[1])
  both = {}
  for _, target in PAIRS:
    x, loggers, propensities = pooled(root, target)
    both[f"both to {target}"] = balanced_values(x, mixture(loggers, propensities))
  record = {
    "command": "python -m tests.evaluation.make_obp_fixture $TF_TWOSTAGE_TEST_DATA",
    "versions": {
      "obp": obp.__version__,
      "numpy": np.__version__,
      "python": platform.python_version(),
    },
    "values": {f"{log} to {target}": values(problem(root, log, target)) for log, target in PAIRS}
    | both,
    "slates": slate_values(),
  }
  FIXTURE.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
