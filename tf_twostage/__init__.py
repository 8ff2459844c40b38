"""Two-stage recommenders, trained off-policy from logs.

Raw data become a bandit log (`datasets`, `simulation`, `bandit_log`); a two-tower candidate
generator and a ranker (`models`) learn from it with an injected objective (`losses`); both are
judged in one stage and in two (`evaluation`) and leave as a SavedModel (`serving`).
`pipeline.run(config)` walks the whole way.
"""

import os
import sys

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")


def _check_keras() -> None:
  """TensorFlow Recommenders needs Keras 2; says so before it fails in a place far away."""
  chosen = os.environ["TF_USE_LEGACY_KERAS"].lower() in ("1", "true")
  tensorflow = sys.modules.get("tensorflow")  # if it is not loaded yet, the variable decides
  if tensorflow is not None:
    chosen = tensorflow.keras.Model.__module__.startswith("tf_keras")
  if not chosen:
    raise ImportError(
      "tf_twostage needs Keras 2, but tf.keras is Keras 3 here. Import tf_twostage before anything"
      " touches tf.keras, or run with the environment variable TF_USE_LEGACY_KERAS=1 (tf_keras is"
      " installed with this package)."
    )


_check_keras()

__version__ = "0.1.0"
