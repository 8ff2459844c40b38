"""What policies would earn, by an environment's evaluation log.

`generators` finds what training left, `run` evaluates it, `report` and `picture` show it.
"""

from tf_twostage.policy_evaluation.generators import Generator
from tf_twostage.policy_evaluation.run import run

__all__ = ["Generator", "run"]
