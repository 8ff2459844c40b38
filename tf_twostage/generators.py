"""Finished generators of a work directory, and the policies that they are."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator

from tf_twostage.config import Config
from tf_twostage.environment import Environment
from tf_twostage.errors import InputError
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.values import TargetPolicy
from tf_twostage.recommender import TwoStageRecommender
from tf_twostage.reports.tables import STAGES

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
    model = TwoStageRecommender.from_config(generator.config)
    directory = model.directory(environment, workdir)
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
