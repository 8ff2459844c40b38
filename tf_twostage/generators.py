"""Finished generators of a work directory, and the policies that they are."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Iterator

from tf_twostage import experiment
from tf_twostage.config import Config
from tf_twostage.environment import Environment
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.values import TargetPolicy
from tf_twostage.metrics import STAGES
from tf_twostage.recommender import TwoStageRecommender

_log = logging.getLogger(__name__)

# What generators of one environment may differ in.
_SECTIONS = ("loss", "generator", "support", "encoder")


@dataclasses.dataclass(frozen=True)
class Generator:
  """A generator: what to call it, and the settings that it was trained with."""

  label: str
  config: Config

  @property
  def name(self) -> str:
    return f"{self.label}, seed {self.config.seed}"

  def is_finished(self, environment: Environment, workdir: pathlib.Path) -> bool:
    model = TwoStageRecommender.from_config(self.config)
    return model.finished_history(environment, workdir) is not None

  def policies(
    self, environment: Environment, evaluation: EvaluationLog, workdir: pathlib.Path
  ) -> Iterator[TargetPolicy]:
    """The generator alone, and the two stages together; both show items at random."""
    model = TwoStageRecommender.from_config(self.config)
    assert model.restore(environment, workdir)
    for stage in STAGES:
      yield model.policy(stage).on(evaluation, self.name)


def finished(config: Config, environment: Environment, workdir: pathlib.Path) -> list[Generator]:
  """All finished generators of an environment; see `experiment.finished`."""
  found = experiment.finished(config, environment, workdir)
  return [Generator(variant.label, variant.config) for variant in found]
