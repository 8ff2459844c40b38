"""The main job: environment -> generator -> evaluation -> export."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage import environment as environments
from tf_twostage import figures, losses, reporting, serving, training
from tf_twostage.config import Config
from tf_twostage.environment import Environment
from tf_twostage.evaluation import protocol
from tf_twostage.models.candidate_generator import CandidateGenerator
from tf_twostage.models.encoders import TwoTower
from tf_twostage.schema import columns
from tf_twostage.stages import Stages, fingerprint, write_json, write_text

_log = logging.getLogger(__name__)

_CHECKED_USERS = 5  # whose recommendations the fresh process must repeat


@dataclasses.dataclass(frozen=True)
class Result:
  """One run: where it is, what it scored, what to print."""

  directory: pathlib.Path
  metrics: dict[str, Any]
  summary: str


def run(config: Config, workdir: pathlib.Path, export_dir: pathlib.Path) -> Result:
  """Walks the whole way; stages whose inputs did not change are reused.

  Args:
    config: all settings.
    workdir: holds stages/, generators/, tensorboard/, and of the last run config.json,
      metrics.json, table.csv and curves.png.
    export_dir: gets the next version of the SavedModel.

  Raises:
    InputError: the data or the settings do not fit; nothing has been trained.
  """
  start = time.perf_counter()
  make_objective(config)  # wrong settings show before anything is read
  stages = Stages(workdir / "stages")
  environment = environments.make(config, stages)
  baselines = environment.baselines(stages, config.slate_size)
  with stages.timed("generator"):
    towers, history = fit_generator(config, environment, workdir)
  with stages.timed("export"):
    recommender = serving.Recommender(
      environment.tables.schema,
      towers,
      environment.ranker_towers,
      environment.titles,
      config.slate_size,
    )
    exported = serving.export(recommender, export_dir)
    serving.check(exported, recommender, _some_requests(environment))
  stages.timings["total"] = {"seconds": round(time.perf_counter() - start, 2), "reused": False}

  best = training.best_epoch(history)
  metrics = {
    "loss": config.loss.loss,
    "best_epoch": best["epoch"],
    **best["scores"],
    "baselines": baselines,
    **environment.facts,
    "export": str(exported),
    "timings": stages.timings,
  }
  directory = generator_directory(config, environment.name, workdir)
  summary = _report(config, metrics, history, (directory, workdir))
  return Result(directory, metrics, summary)


def fit_generator(
  config: Config, environment: Environment, workdir: pathlib.Path, *, progress: bool = True
) -> tuple[TwoTower, training.History]:
  """The towers of the best epoch, and what every epoch scored.

  A generator that is fitted already is found, one that was cut short goes on.

  Args:
    config: settings of objective and generator.
    environment: what it learns from and is judged by.
    workdir: gets generators/<run>/ and tensorboard/<run>/.
    progress: whether to show a bar.
  """
  directory = generator_directory(config, environment.name, workdir)
  directory.mkdir(parents=True, exist_ok=True)
  write_json(directory / "config.json", dataclasses.asdict(config))
  tf.keras.utils.set_random_seed(config.seed)
  towers = TwoTower(
    environment.tables,
    config.encoder,
    l2=config.generator.l2,
    item_bias=config.generator.item_bias,
  )
  model = CandidateGenerator(
    towers, make_objective(config), ranker_logits=environment.ranker_logits
  )
  log = environment.log
  history = training.train_generator(
    model,
    log.positives() if config.generator.positives_only else log,
    environment.tables.users,
    environment.evaluation(lambda batch: model(batch["user"]), config.slate_size),
    protocol.selection(config.generator.selection),
    config.generator,
    directory,
    seed=config.seed,
    hyper_parameters=_hyper_parameters(config),
    tensorboard=workdir / "tensorboard" / directory.name,
    progress=progress,
  )
  return towers, history


def generator_directory(config: Config, environment: str, workdir: pathlib.Path) -> pathlib.Path:
  """Where a generator of these settings lives; different settings never share a directory."""
  depends_on = {
    "environment": environment,
    "encoder": dataclasses.asdict(config.encoder),
    "generator": dataclasses.asdict(config.generator),
    "loss": dataclasses.asdict(config.loss),
    "slate_size": config.slate_size,
    "validation_users": config.data.validation_users,
    "seed": config.seed,
  }
  name = f"{config.loss.loss}-seed{config.seed}-{fingerprint(depends_on)}"
  return workdir / "generators" / name


def make_objective(config: Config) -> losses.OffPolicyLoss:
  """The configured loss, with those settings that it takes."""
  settings = config.loss
  options = {
    **dataclasses.asdict(settings),
    "importance": losses.ImportanceWeights(
      method=settings.weight_method,
      cap=settings.weight_cap,
      floor=settings.weight_floor,
      shrinkage=settings.weight_shrinkage,
      self_normalize=settings.self_normalize,
    ),
    "slate_size": config.slate_size,
    "seed": config.seed,
  }
  taken = losses.options(settings.loss)
  return losses.get(settings.loss, **{k: v for k, v in options.items() if k in taken})


def _some_requests(environment: Environment) -> dict[str, np.ndarray]:
  """Raw requests of the first users in their mean context, their logged positives excluded."""
  rows = slice(0, _CHECKED_USERS)
  schema, users = environment.tables.schema, environment.users
  exclude = np.full((_CHECKED_USERS, 1), "")
  if users.excluded is not None:
    excluded = users.excluded[rows]
    ids = np.asarray(schema.item_id.vocabulary)
    width = max(1, excluded.sum(axis=1).max())
    best = np.argsort(~excluded, axis=1, kind="stable")[:, :width]
    exclude = np.where(np.take_along_axis(excluded, best, axis=1), ids[best], "")
  inputs = [name for f in schema.user_inputs for name in columns(f)]
  return {
    **{name: np.asarray(environment.raw_users[name])[rows] for name in inputs},
    **{f.name: users.inputs["context"][f.name][rows] for f in schema.context},
    "exclude": exclude,
  }


def _report(
  config: Config,
  metrics: dict[str, Any],
  history: training.History,
  directories: tuple[pathlib.Path, ...],
) -> str:
  """Writes the run's files into every directory; returns what the run says at its end."""
  baselines = metrics["baselines"]
  scores = {split: metrics[split] for split in ("validation", "test")}
  table = reporting.score_table({config.loss.loss: scores, **baselines})
  warnings = reporting.health_warnings(history[-1]["training"], config.loss.loss)
  for warning in warnings:
    _log.warning("%s", warning)
  for directory in directories:
    write_json(directory / "config.json", dataclasses.asdict(config))
    write_json(directory / "metrics.json", metrics)
    write_text(directory / "table.csv", reporting.flat_csv(table))
    figures.run_curves(
      history, baselines, f"{config.name}: {config.loss.loss}", directory / "curves.png"
    )
  return "\n\n".join(
    [
      reporting.format_table(table),
      reporting.format_timings(metrics["timings"]),
      f"Best epoch {metrics['best_epoch']} of {len(history)}. Results: {directories[0]}\n"
      f"SavedModel: {metrics['export']}",
    ]
  )


def _hyper_parameters(config: Config) -> dict[str, Any]:
  """What a generator's results depend on, apart from its environment: settings that it reads."""
  read = losses.options(config.loss.loss)
  of_weights = ("weight_", "self_normalize") if "importance" in read else ()
  objective = {
    name: value
    for name, value in dataclasses.asdict(config.loss).items()
    if name in read or name.startswith(of_weights)
  }
  return {
    "loss": config.loss.loss,
    "slate_size": config.slate_size,
    "seed": config.seed,
    "embedding_stddev": config.encoder.embedding_stddev,
    **objective,
    **dataclasses.asdict(config.generator),
  }
