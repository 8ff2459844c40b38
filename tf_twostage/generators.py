"""Finished generators of a work directory, and the policies that they are."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage import pipeline, policies
from tf_twostage.config import Config
from tf_twostage.environment import Environment
from tf_twostage.errors import InputError
from tf_twostage.evaluation.evaluation_log import ByRow, EvaluationLog
from tf_twostage.evaluation.values import TargetPolicy
from tf_twostage.models.encoders import TwoTower
from tf_twostage.reports.tables import STAGES
from tf_twostage.training import loop

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
    directory = pipeline.generator_directory(self.config, environment.name, workdir)
    return loop.finished_history(directory, self.config.generator.epochs) is not None

  def policies(
    self, environment: Environment, evaluation: EvaluationLog, workdir: pathlib.Path
  ) -> Iterator[TargetPolicy]:
    """The generator alone, and the two stages together; both show items at random."""
    towers = pipeline.finished_generator(self.config, environment, workdir)
    assert towers is not None
    items = towers.candidates()

    def softmax(inputs: Mapping[str, Any]) -> tf.Tensor:
      return policies.SoftmaxPolicy(_logits(towers, items, inputs)).probabilities()

    def two_stage(inputs: Mapping[str, Any]) -> tf.Tensor:
      return policies.two_stage_probabilities(
        _logits(towers, items, inputs), environment.ranker_logits(inputs), self.config.slate_size
      )

    for stage, probabilities in (("one_stage", softmax), ("two_stage", two_stage)):
      yield TargetPolicy(self.name, STAGES[stage], _by_row(probabilities, environment, evaluation))


def finished(config: Config, environment: Environment, workdir: pathlib.Path) -> list[Generator]:
  """All finished generators of an environment, by loss and seed.

  A generator is called by its loss and by what else of its settings is not that of `config`.
  """
  found, strange = [], 0
  for file in sorted((workdir / "generators").glob("*/config.json")):
    stored = stored_config(file)
    if stored is None:
      strange += 1
      continue
    theirs = {name: getattr(stored, name) for name in (*_SECTIONS, "slate_size", "seed")}
    generator = Generator(_label(stored, config), dataclasses.replace(config, **theirs))
    directory = pipeline.generator_directory(generator.config, environment.name, workdir)
    if directory.name != file.parent.name:
      strange += 1
    elif generator.is_finished(environment, workdir):
      found.append(generator)
  if strange:
    _log.info("%d generators of other environments or versions are left out", strange)
  return sorted(found, key=lambda g: (g.label, g.config.seed))


def stored_config(file: pathlib.Path) -> Config | None:
  """The settings of a run; None if they are of another version of the program."""
  defaults = Config()
  try:
    values = json.loads(file.read_text(encoding="utf-8"))
    return Config(
      **{
        name: type(getattr(defaults, name))(**value) if isinstance(value, dict) else value
        for name, value in values.items()
      }
    )
  except (ValueError, TypeError, AttributeError, InputError):
    return None


def _label(config: Config, usual: Config) -> str:
  """The loss, and "name=value" of every setting that is not the usual one."""
  pairs = [("slate_size", config.slate_size, usual.slate_size)] + [
    (field.name, getattr(getattr(config, name), field.name), getattr(section, field.name))
    for name in _SECTIONS
    for section in [getattr(usual, name)]
    for field in dataclasses.fields(section)
    if field.name != "loss"
  ]
  return ":".join([config.loss.loss, *(f"{n}={own}" for n, own, theirs in pairs if own != theirs)])


def _logits(towers: TwoTower, items: tf.Tensor, inputs: Mapping[str, Any]) -> tf.Tensor:
  return tf.matmul(towers.query(inputs["user"]), items, transpose_b=True)


def _by_row(scorer, environment: Environment, evaluation: EvaluationLog) -> ByRow:
  users = environment.tables.users

  def probabilities(rows: np.ndarray) -> np.ndarray:
    return scorer(evaluation.inputs(rows, users)).numpy()

  return probabilities
