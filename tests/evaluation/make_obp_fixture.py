"""Writes what Open Bandit Pipeline computes on the Open Bandit Dataset to obp_0_5_7.json.

Run it from the repository's root in an environment of its own that holds obp 0.5.7 (which needs
older packages than this library), with the directory that `TF_TWOSTAGE_TEST_DATA` names:

    python -m tests.evaluation.make_obp_fixture DIR
"""

import json
import pathlib
import platform
import sys

import numpy as np

from tests.evaluation.open_bandit_arrays import NUM_ITEMS, NUM_POSITIONS, PAIRS, Problem, problem

FIXTURE = pathlib.Path(__file__).parent / "obp_0_5_7.json"
THRESHOLD = 2.0  # of the clipped and the switching estimator: it bites on both logs


def values(x: Problem) -> dict[str, float]:
  """The values that OBP's estimators give, under this library's names."""
  from obp import ope

  estimators = {
    "dm": ope.DirectMethod(),
    "ips": ope.InverseProbabilityWeighting(),
    "clipped_ips": ope.InverseProbabilityWeighting(lambda_=THRESHOLD),
    "snips": ope.SelfNormalizedInverseProbabilityWeighting(),
    "dr": ope.DoublyRobust(),
    "switch_dr": ope.SwitchDoublyRobust(lambda_=THRESHOLD),
  }
  n = len(x.actions)
  # OBP reads each row at its position only.
  predicted = np.zeros((n, NUM_ITEMS, NUM_POSITIONS))
  predicted[np.arange(n), :, x.positions] = x.predicted_rewards
  arrays = {
    "reward": x.rewards,
    "action": x.actions,
    "pscore": x.propensities,
    "position": x.positions,
    "action_dist": np.tile(x.policy, (n, 1, 1)),
    "estimated_rewards_by_reg_model": predicted,
  }
  return {
    name: float(estimator.estimate_policy_value(**arrays)) for name, estimator in estimators.items()
  }


def main() -> None:
  import obp

  root = pathlib.Path(sys.argv[1])
  record = {
    "command": "python -m tests.evaluation.make_obp_fixture $TF_TWOSTAGE_TEST_DATA",
    "versions": {
      "obp": obp.__version__,
      "numpy": np.__version__,
      "python": platform.python_version(),
    },
    "values": {f"{log} to {target}": values(problem(root, log, target)) for log, target in PAIRS},
  }
  FIXTURE.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
