"""The main job: environment -> generator -> evaluation -> export."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_twostage import environment as environments
from tf_twostage import losses, serving
from tf_twostage.config import Config
from tf_twostage.data.rows import TrainingRows
from tf_twostage.environment import Environment
from tf_twostage.errors import InputError
from tf_twostage.metrics import Scores
from tf_twostage.models.encoders import TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.models.support import SampledSupport, check_hard_candidates
from tf_twostage.reports import plots, run_report
from tf_twostage.training import loop
from tf_twostage.training.distribution import Job, Workers
from tf_twostage.workspace import Workspace, fingerprint, write_json, write_text

_log = logging.getLogger(__name__)

_METRICS = "metrics.json"


@dataclasses.dataclass(frozen=True)
class Result:
  """One run: where it is, what it scored, what to print."""

  directory: pathlib.Path
  metrics: dict[str, Any]
  summary: str


def run(
  config: Config, workdir: pathlib.Path, export_dir: pathlib.Path, *, keep: int = serving.KEEP
) -> Result:
  """Walks the whole way; stages whose inputs did not change are reused.

  Where the settings ask for workers, each of them calls this; what the chief returns is the run.

  Args:
    config: all settings.
    workdir: holds stages/, generators/, tensorboard/, and of the last run config.json,
      metrics.json, table.csv and curves.png.
    export_dir: gets the next version of the SavedModel.
    keep: how many versions stay there.

  Raises:
    InputError: the data or the settings do not fit; nothing has been trained.
  """
  check(config)
  job = Job.of(config)
  if job.serves:
    return Result(workdir, {}, job.serve(workdir / _METRICS))
  workers = job.join(config.generator.batch_size)
  with workers.together():
    check_same(config, workers)
    result = _run(config, workdir, export_dir, keep, workers)
    workers.wait()
  return result or Result(workdir, {}, f"{job.name}: the chief is done")


def _run(
  config: Config, workdir: pathlib.Path, export_dir: pathlib.Path, keep: int, workers: Workers
) -> Result | None:
  """The chief's result."""
  start = time.perf_counter()
  workspace = Workspace(workdir / "stages", builds=workers.is_chief, barrier=workers.wait)
  environment = environments.make(config, workspace)
  baselines = environment.baselines(workspace, config.slate_size)
  with workspace.timed("generator"):
    towers, history = fit_generator(config, environment, workdir, workers=workers)
  if not workers.is_chief:
    return None
  waits = [epoch["input_wait_share"] for epoch in history if "input_wait_share" in epoch]
  if waits:
    workspace.timings["generator"]["input_wait_share"] = sum(waits) / len(waits)
  with workspace.timed("export"):
    exported = export(config, environment, towers, export_dir, keep=keep)
  workspace.timings["total"] = {"seconds": round(time.perf_counter() - start, 2), "reused": False}

  best = loop.best_epoch(history)
  metrics = {
    "loss": config.loss.loss,
    "best_epoch": best["epoch"],
    **best["scores"],
    "baselines": baselines,
    **environment.facts,
    "notes": [*environment.notes, *environment.evaluator.warnings(best["scores"])],
    "export": str(exported),
    "timings": workspace.timings,
  }
  directory = generator_directory(config, environment.name, workdir)
  summary = _report(config, environment, metrics, history, (directory, workdir))
  return Result(directory, metrics, summary)


def fit_generator(
  config: Config,
  environment: Environment,
  workdir: pathlib.Path,
  *,
  progress: bool = True,
  workers: Workers | None = None,
) -> tuple[TwoTower, loop.History]:
  """The towers of the best epoch, and what every epoch scored.

  A generator that is fitted already is found, one that was cut short goes on. Of several workers
  that fit it together, the chief alone returns something of use.

  Args:
    config: settings of objective and generator.
    environment: what it learns from and is judged by.
    workdir: gets generators/<run>/ and tensorboard/<run>/.
    progress: whether to show a bar.
    workers: who fits it; None: this process.
  """
  workers = workers or Workers()
  directory = generator_directory(config, environment.name, workdir)
  if workers.is_chief:
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", dataclasses.asdict(config))
  # What is evaluated and exported has variables of this process alone.
  towers = None if workers.alone else fresh_towers(config, environment)
  with workers.scope():
    model = fresh_generator(config, environment)
  judged = towers or model.towers
  scores = environment.evaluation(lambda batch: judged(batch["user"]), config.slate_size)

  def take_weights() -> None:
    if towers is not None:
      towers.set_weights(model.towers.get_weights())

  def evaluate() -> Scores:
    take_weights()
    return scores()

  history = loop.train_generator(
    model,
    rows_to_learn(config, environment.log),
    environment.tables.users,
    evaluate,
    environment.evaluator.measures.selection(config.generator.selection),
    config.generator,
    directory,
    seed=config.seed,
    hyper_parameters=_hyper_parameters(config),
    tensorboard=workdir / "tensorboard" / directory.name,
    measures=environment.evaluator.measures,
    notes=environment.notes,
    checkpoints=config.checkpoints,
    progress=progress,
    workers=workers,
  )
  take_weights()
  return judged, history


def finished_generator(
  config: Config, environment: Environment, workdir: pathlib.Path
) -> TwoTower | None:
  """The towers that `fit_generator` returned for these settings; None if it has not finished."""
  directory = generator_directory(config, environment.name, workdir)
  history = loop.finished_history(directory, config.generator.epochs)
  if history is None:
    return None
  towers = fresh_towers(config, environment)
  loop.restore_best(towers, directory, history)
  return towers


def fresh_generator(config: Config, environment: Environment) -> CandidateGenerator:
  """The generator with its objective before training; sets the seed of all that follows."""
  tf.keras.utils.set_random_seed(config.seed)
  return CandidateGenerator(
    fresh_towers(config, environment),
    make_objective(config),
    environment.ranker_logits,
    _make_support(config, environment),
    config.generator.precision,
  )


def _make_support(config: Config, environment: Environment) -> SampledSupport | None:
  settings, num_items = config.support, environment.tables.schema.num_items
  if not settings.support_size:
    return None
  if settings.support_size > num_items:
    _log.warning(
      "support_size is %d, more than the %d items of the catalogue: it costs more than all of them,"
      " and is less exact; --support_size=0 trains against the whole catalogue",
      settings.support_size,
      num_items,
    )
  counts = rows_to_learn(config, environment.log).shown(num_items)
  return SampledSupport(
    losses.DRAWS[settings.support_draws](counts),
    num_items=num_items,
    size=settings.support_size,
    seed=config.seed,
    hard_candidates=settings.hard_candidates,
    hard_refresh_steps=settings.hard_refresh_steps,
  )


def check(config: Config) -> None:
  """Shows wrong settings of the generator before anything is read.

  Raises:
    InputError: the objective has no such options, or a support no place for draws.
  """
  make_objective(config)
  settings, rows = config.support, config.generator.batch_size
  certain = rows + settings.hard_candidates
  if 0 < settings.support_size <= certain:
    raise InputError(
      f"support_size is {settings.support_size}, but a batch of {rows} rows and"
      f" {settings.hard_candidates} hard candidates fill {certain} places and leave none to draw"
      " for; raise --support_size, or lower --batch_size or --hard_candidates"
    )


def check_catalogue(config: Config, environment: Environment) -> None:
  """Shows settings that the catalogue is too small for before a generator is fitted.

  Raises:
    InputError: more hard candidates than items.
  """
  if config.support.support_size:
    check_hard_candidates(config.support.hard_candidates, environment.tables.schema.num_items)


def check_same(config: Config, workers: Workers) -> None:
  """Shows settings in which workers differ: they would learn from other rows than they believe.

  Raises:
    InputError: there are some; at all workers.
  """
  settings: dict[str, Any] = {}
  for name, value in dataclasses.asdict(config).items():
    section = isinstance(value, dict)
    settings |= {f"{name}.{n}": v for n, v in value.items()} if section else {name: value}
  if odd := workers.differing(settings):
    raise InputError(
      f"workers have different settings of {', '.join(odd)}; give all of them the same flags"
    )


def rows_to_learn(config: Config, log: TrainingRows) -> TrainingRows:
  """The rows of a log that the generator is fitted to."""
  return log.positives() if config.generator.positives_only else log


def fresh_towers(config: Config, environment: Environment) -> TwoTower:
  """The generator before training."""
  return TwoTower(
    environment.tables,
    config.encoder,
    l2=config.generator.l2,
    sparse_l2=config.generator.sparse_l2 or config.support.support_size > 0,
    item_bias=config.generator.item_bias,
  )


def export(
  config: Config,
  environment: Environment,
  towers: TwoTower,
  export_dir: pathlib.Path,
  *,
  keep: int = serving.KEEP,
  removed: Sequence[str] = (),
  new: serving.NewItems | None = None,
) -> pathlib.Path:
  """Writes the next version of the SavedModel and returns its directory.

  Args:
    config: how many items the ranker orders.
    environment: has the ranker, the catalogue, and requests that the export is tried with.
    towers: the generator.
    export_dir: holds the versions.
    keep: how many of them stay.
    removed, new: items that went and came since; see `serving.change`.
  """
  pair = serving.Pair(
    environment.tables.schema, towers, environment.slate_ranker, environment.titles
  )
  recommender = serving.Recommender(
    *serving.change(pair, removed=removed, new=new), config.slate_size
  )
  return serving.export(recommender, export_dir, environment.requests, keep=keep)


def generator_directory(config: Config, environment: str, workdir: pathlib.Path) -> pathlib.Path:
  """Where a generator of these settings lives; different settings never share a directory."""
  depends_on = {
    "environment": environment,
    "encoder": dataclasses.asdict(config.encoder),
    "generator": dataclasses.asdict(config.generator),
    "support": dataclasses.asdict(config.support),
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


def _report(
  config: Config,
  environment: Environment,
  metrics: dict[str, Any],
  history: loop.History,
  directories: tuple[pathlib.Path, ...],
) -> str:
  """Writes the run's files into every directory; returns what the run says at its end."""
  baselines, evaluator = metrics["baselines"], environment.evaluator
  scores = {split: metrics[split] for split in ("validation", "test")}
  policies = {config.loss.loss: scores, **baselines}
  table = run_report.score_table(policies, measures=evaluator.measures)
  for warning in run_report.health_warnings(history[-1]["training"], config.loss.loss):
    _log.warning("%s", warning)
  for directory in directories:
    write_json(directory / "config.json", dataclasses.asdict(config))
    write_json(directory / _METRICS, metrics)
    write_text(directory / "table.csv", run_report.flat_csv(table))
    title = f"{config.name}: {config.loss.loss}"
    plots.run_curves(history, baselines, title, directory / "curves.png", evaluator.measures)
  return "\n\n".join(
    [
      run_report.format_table(table, evaluator.measures),
      *(["\n".join(f"- {note}" for note in metrics["notes"])] if metrics["notes"] else []),
      run_report.format_timings(metrics["timings"]),
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
    **dataclasses.asdict(config.support),
  }
