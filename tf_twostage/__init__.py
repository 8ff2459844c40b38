"""Two-stage recommenders, trained off-policy from logs.

    log = BanditLog.from_pandas(frame, user="user", item="item", propensity="p", reward="click")
    train, valid, test = log.split()
    model = TwoStageRecommender().fit(train, validation=valid)
    print(evaluate(test, {"ours": model.policy()}))
    model.export("saved_models/shop")

A `BanditLog` (`data`) trains a two-tower candidate generator (`models`) with an off-policy loss
(`losses`), in an `environment` that adds a ranker and held-out rows. `evaluate` estimates what
policies would earn; `serving` exports for TensorFlow Serving.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tf_twostage import losses
  from tf_twostage.config import (
    Config,
    EncoderConfig,
    FitConfig,
    GeneratorConfig,
    SupportConfig,
  )
  from tf_twostage.data.log import BanditLog
  from tf_twostage.data.sets.ratings import RatingsData
  from tf_twostage.errors import InputError, RunError
  from tf_twostage.evaluation.examination import estimate_examination
  from tf_twostage.evaluation.rows import balanced_propensities
  from tf_twostage.evaluation.slot_examination import Examination
  from tf_twostage.policy_evaluation import Evaluation, Mixture, estimate_propensities, evaluate
  from tf_twostage.recommender import TwoStageRecommender

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")


def _check_keras() -> None:
  """Raises: ImportError: Keras 3 is loaded; TensorFlow Recommenders needs Keras 2."""
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

__version__ = "0.2.0"

__all__ = [
  "BanditLog",
  "ClauseConfig",
  "Config",
  "EncoderConfig",
  "Evaluation",
  "Examination",
  "FitConfig",
  "GeneratorConfig",
  "InputError",
  "Mixture",
  "RatingsData",
  "RunError",
  "SupportConfig",
  "TwoStageRecommender",
  "balanced_propensities",
  "estimate_examination",
  "estimate_propensities",
  "evaluate",
  "losses",
]
_MODULES = {
  "BanditLog": "data.log",
  "Evaluation": "policy_evaluation",
  "Examination": "evaluation.slot_examination",
  "RatingsData": "data.sets.ratings",
  "Mixture": "policy_evaluation",
  "TwoStageRecommender": "recommender",
  "balanced_propensities": "evaluation.rows",
  "estimate_examination": "evaluation.examination",
  "estimate_propensities": "policy_evaluation",
  "evaluate": "policy_evaluation",
}


def __getattr__(name: str) -> Any:
  """Imports public names on first use: TensorFlow takes seconds."""
  if name == "losses":
    return importlib.import_module(f"{__name__}.losses")
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  default = "errors" if name.endswith("Error") else "config"
  return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, default)}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
