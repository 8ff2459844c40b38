"""`TwoStageRecommender`: trains a candidate generator off-policy, recommends with it, ships it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import html
import logging
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tensorflow as tf

from tf_twostage import losses, metrics, plotting, policies, serving
from tf_twostage.casmos import curve as threshold_curve
from tf_twostage.casmos import generator as casmos
from tf_twostage.casmos.queries import StructuredQueries
from tf_twostage.config import (
  ClauseConfig,
  Config,
  EncoderConfig,
  FitConfig,
  GeneratorConfig,
  SupportConfig,
)
from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows
from tf_twostage.data.streamed import TrainingRows
from tf_twostage.environment import Environment, log_environment
from tf_twostage.environment.bayesian import SlateRows, target_rows
from tf_twostage.errors import InputError
from tf_twostage.evaluation.evaluation_log import EvaluationLog, distinct_contexts
from tf_twostage.evaluation.slate_log import has_repeats
from tf_twostage.evaluation.values import TargetPolicy
from tf_twostage.losses import OffPolicyLoss
from tf_twostage.metrics import SERVED, STAGES, TWO_STAGES, Scores
from tf_twostage.models.encoders import Tower, TwoTower
from tf_twostage.models.external import RankerLike
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.models.probit import of_sweeps
from tf_twostage.models.ranker import Ranker
from tf_twostage.models.support import SampledSupport, check_hard_candidates
from tf_twostage.models.two_stage import POLICIES, products, rerank, retrieve
from tf_twostage.reports import plots, run_report
from tf_twostage.serving.servable import TIME
from tf_twostage.serving.served import Excluded, Served, Users
from tf_twostage.training import loop
from tf_twostage.training.distribution import Workers
from tf_twostage.training.progress import bars
from tf_twostage.training.tensorboard import Monitor
from tf_twostage.workspace import (
  Workspace,
  fingerprint,
  make_directory,
  write_json,
  write_record,
  write_text,
)

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

METRICS = "metrics.json"
_MODEL = "model"  # in a work directory: the fitted model, for `load`
_DEFAULTS = Config()
# Logits of a training for which XLA saves more time than compiling takes, a second or two.
_WORTH_COMPILING = 5e8
Generator = TwoTower | StructuredQueries


class TwoStageRecommender:
  """A candidate generator, trained off-policy with the ranker behind it in the loss.

      model = TwoStageRecommender().fit(train, validation=valid)
      model.recommend(["u42"], k=10)
      evaluate(test, {"ours": model.policy()})
      model.export("saved_models/shop")

  Attributes:
    config: all settings.
  """

  def __init__(
    self,
    loss: str | OffPolicyLoss | None = None,
    *,
    train: str | None = None,
    generator: str | None = None,
    ranker: RankerLike | None = None,
    user_tower: Tower | None = None,
    item_tower: Tower | None = None,
    slate_size: int | None = None,
    encoder: EncoderConfig = _DEFAULTS.encoder,
    training: GeneratorConfig = _DEFAULTS.generator,
    ranker_training: FitConfig = _DEFAULTS.ranker,
    support: SupportConfig = _DEFAULTS.support,
    clauses: ClauseConfig = _DEFAULTS.clauses,
    seed: int = 0,
  ):
    """Args:
      loss: the objective: an `OffPolicyLoss`, or the name of one, which may carry options:
        "two_stage_ips:num_slates=50". None: "ips:policy=distinct"; on ratings or orders
        "cross_entropy", since they have no propensities.
      train: which stages learn, see `config.GeneratorConfig`; None: as `training` says. Of the
        losses, "two_stage_ltr" teaches the ranker.
      generator: "two_tower", or "casmos", which scores by weighted clauses; None: as `training`
        says.
      ranker: orders the candidates. A `tf.keras.Model`, or the path of a SavedModel or Keras file,
        whose inputs are raw features by name; or a function of two dicts of tensors, user features
        and item features ([B, ...] each), that returns scores [B]. None: fitted to the log's
        ranker scores, or to its rewards where it has none.
      user_tower, item_tower: a `tf.keras.Model`, or a function without arguments that makes one.
        It maps a dict of feature codes to vectors [B, D]; both towers have one width D. Codes are
        int64 [B], 0 for unknown values (a bag is [B, length], 0 pads and 1 is unknown), and
        float32 [B] for numbers; ids are called "user_id" and "item_id". A function is called after
        the seed is set, so a rerun finds the finished model. A model is trained in place. None:
        embeddings side by side; on the user side followed by a layer that projects them to the
        item tower's width.
      slate_size: K, how many candidates the ranker orders; replaces the loss's own. None: the
        default of `Config`, or the whole catalogue where it is smaller.
      encoder: embedding widths and initializer.
      training: how the generator is fitted.
      ranker_training: how the ranker and the reward model are fitted.
      support: which items stand for a large catalogue in training.
      clauses: of the generator "casmos".
      seed: of everything that is drawn.

    Raises:
      InputError: a setting is out of range, or no loss has that name.
    """
    for name, value, kind in (
      ("encoder", encoder, EncoderConfig),
      ("training", training, GeneratorConfig),
      ("ranker_training", ranker_training, FitConfig),
      ("support", support, SupportConfig),
      ("clauses", clauses, ClauseConfig),
    ):
      if not isinstance(value, kind):
        raise InputError(f"{name} must be a config.{kind.__name__}, got {value!r}")
    if not isinstance(loss, str | OffPolicyLoss | None):
      raise InputError(f"loss must be a name or a losses.OffPolicyLoss, got {loss!r}")
    if train is not None:
      training = dataclasses.replace(training, train=train)
    if generator is not None:
      training = dataclasses.replace(training, generator=generator)
    self.config = Config(
      name="recommender",
      seed=seed,
      environment_seed=seed,
      slate_size=_DEFAULTS.slate_size if slate_size is None else slate_size,
      encoder=encoder,
      generator=training,
      clauses=clauses,
      ranker=ranker_training,
      support=support,
      loss=loss if isinstance(loss, str) else Config.loss,
      user_log=dataclasses.replace(_DEFAULTS.user_log, test_share=0.0),
    )
    self._loss = loss if isinstance(loss, OffPolicyLoss) else None
    self._ranker = ranker
    towers = {"user_tower": user_tower, "item_tower": item_tower}
    self._towers = {name: tower for name, tower in towers.items() if tower is not None}
    for name, tower in self._towers.items():
      if not callable(tower):
        raise InputError(
          f"{name} must be a tf.keras.Model of Keras 2, or a function that makes one, got {tower!r}"
        )
    self._adapts_slate, self._adapts_loss = slate_size is None, loss is None
    self._digest = ""  # of custom towers before training
    self._temporary: tempfile.TemporaryDirectory | None = None
    self._stages = pathlib.Path()  # of the last fit
    self._history: loop.History = []
    self._environment: Environment | None = None
    self._generator: Generator | None = None
    self._served: Served | None = None
    self._check_settings()

  @classmethod
  def from_config(cls, config: Config) -> TwoStageRecommender:
    """A recommender with all settings of `config`, as the commands make it.

    Raises:
      InputError: the loss has no such option, or the settings contradict each other.
    """
    made = cls()
    made.config, made._adapts_slate, made._adapts_loss = config, False, False
    made._check_settings()
    return made

  @classmethod
  def load(cls, path: str | pathlib.Path) -> TwoStageRecommender:
    """A recommender from an export; it recommends and evaluates, but cannot be trained further.

    It needs none of the Python code of custom towers or rankers.

    Args:
      path: a directory of exports, of which the newest version is loaded; one version; or the
        `workdir` of a `fit` on a log.

    Raises:
      InputError: there is no export.
    """
    path = pathlib.Path(path)
    served = Served.load(path / _MODEL if (path / _MODEL).is_dir() else path)
    made = cls(slate_size=served.settings["slate_size"])
    made._served, made._history = served, served.settings["history"]
    return made

  def fit(
    self,
    data: BanditLog | Environment,
    validation: BanditLog | None = None,
    *,
    workdir: str | pathlib.Path | None = None,
    progress: bool = True,
    workers: Workers | None = None,
  ) -> TwoStageRecommender:
    """Trains the generator and keeps the weights of its best epoch.

    A log without propensities gets estimated ones. A finished model with the same data and
    settings is found in `workdir`, and an interrupted run resumes from its last checkpoint.

    Args:
      data: the training rows, or an environment.
      validation: rows that choose the epoch, of the same users and items. None: a share of `data`
        is held out for that, the latest rows where the log has times.
      workdir: keeps finished stages, checkpoints, TensorBoard files, and for a log the fitted
        model. None: a temporary directory, deleted with this object.
      progress: whether to show progress bars.
      workers: the processes or devices that train together. None: this process.

    Raises:
      InputError: the data do not fit the settings; nothing has been trained.
      RunError: training diverged, or something cannot be saved.
    """
    with bars(progress):
      return self._fit(data, validation, workdir, workers or Workers())

  def _fit(
    self,
    data: BanditLog | Environment,
    validation: BanditLog | None,
    workdir: str | pathlib.Path | None,
    workers: Workers,
  ) -> TwoStageRecommender:
    """See `fit`."""
    if not isinstance(data, BanditLog | Environment):
      raise InputError(
        f"fit takes a BanditLog or an Environment, got {type(data).__name__}; make a log with"
        " BanditLog.from_pandas"
      )
    if self._served is not None and self._environment is None:
      raise InputError("a loaded recommender cannot be trained further; make a new one")
    self._digest = ""
    if workdir is None:
      self._temporary = tempfile.TemporaryDirectory(prefix="tf_twostage-")
    root = pathlib.Path(workdir or self._temporary.name)  # type: ignore[union-attr]
    make_directory(root, "workdir")
    self._stages = root / "stages"
    if isinstance(data, BanditLog):
      self._adapt_slate(data.num_items)
      if self._adapts_loss:
        usual = _DEFAULTS if data.impressions else Config(loss="cross_entropy")
        self.config = dataclasses.replace(
          self.config, loss=usual.loss, loss_options=usual.loss_options
        )
      workspace = Workspace(self._stages)
      ranker = self.config.user_log.ranker if self._ranker is None else self._ranker
      environment = log_environment(self.config, data, validation, workspace, ranker)
    else:
      self._adapt_slate(data.tables.schema.num_items)
      environment = data
      if self._ranker is not None or validation is not None:
        raise InputError("an environment has its ranker and validation rows; pass it alone")
    if (self._towers or self._trains_ranker or self._has_clauses) and not workers.alone:
      what = "clauses" if self._has_clauses else "custom towers" if self._towers else "rankers"
      raise InputError(f"{what} train in one process only; leave `workers` out")
    # Evaluation and export use variables of this process alone.
    towers = None if workers.alone else self.fresh_towers(environment)
    generator = self._fitted_generator(environment, root)
    with workers.scope():
      model = self.fresh_generator(environment, generator)
    directory = self.directory(environment, root)
    if workers.is_chief:
      directory.mkdir(parents=True, exist_ok=True)
      write_record(directory / "config.json", dataclasses.asdict(self.config))
    evaluated = towers or model.towers
    live = environment if model.ranker is None else environment.following(model.ranker)
    # Encoding the catalogue anew for each chunk of users would cost more than scoring it.
    vectors = tf.Variable(evaluated.candidates(), trainable=False)
    passing = getattr(evaluated, "passing", tf.identity)
    scores = live.evaluation(
      lambda batch: passing(products(evaluated.query(batch["user"]), vectors)),
      self.slate_size,
      model.objective.stage,
    )

    def take_weights() -> None:
      if towers is not None:
        towers.set_weights(model.towers.get_weights())
      if isinstance(evaluated, StructuredQueries):
        evaluated.choose_threshold()

    def evaluate() -> Scores:
      take_weights()
      vectors.assign(evaluated.candidates())
      return scores()

    of_items = self.config.generator.train == "generator" and not model.objective.takes_slates
    if "examination" in environment.facts and of_items:
      _log.info(
        "loss %s trains the generator alone, from single items of the slates; loss=two_stage_ltr"
        " with train=both trains both stages, by the ranks of items",
        self.loss_name,
      )
    rows: TrainingRows | SlateRows
    if model.objective.takes_slates:
      rows = target_rows(
        environment,
        model.objective,
        Workspace(self._stages),
        of_sweeps(self.config.reward.reward_sweeps, self.config.environment_seed),
      )
    else:
      rows = rows_to_learn(self.config, model.objective, environment.log)
    settings, num_rows = self._training, len(rows) if self.config.clauses.train_clauses else 1
    self._compile_loss(model, num_rows * environment.tables.schema.num_items, workers)
    measured = environment.evaluator.metrics
    monitor = Monitor(
      root / "tensorboard" / directory.name,
      self._hyper_parameters(model.objective),
      measured,
      environment.notes,
    )
    with rows.reading():
      history = loop.fit(
        model,
        functools.partial(rows.batches, environment.tables.users, seed=self.config.seed),
        settings.of_ranker if settings.train == "ranker" else settings,
        rows=num_rows,
        name="generator",
        evaluate=evaluate,
        select=measured.selection(settings.selection),
        directory=directory,
        weights=model.learned,
        checkpoints=self.config.checkpoints,
        monitor=monitor,
        workers=workers,
      )
    take_weights()
    if isinstance(evaluated, StructuredQueries):
      write_text(directory / casmos.FILE, evaluated.current().to_json())
    self._keep(environment, evaluated, model.ranker, history)
    if workdir is not None and isinstance(data, BanditLog):
      self._save(root / _MODEL)
    return self

  def fit_rows(self, environment: Environment, log: TrainingRows) -> TwoStageRecommender:
    """Trains the generator on other rows of an environment, and keeps its last epoch.

    Nothing is evaluated or saved.

    Args:
      environment: its users, items and ranker.
      log: the training rows.
    """
    settings = self.config.generator
    if self.objective().takes_slates:
      raise InputError(f"the loss {self.loss_name} learns from whole environments; choose another")
    if settings.train == "ranker":
      raise InputError("train=ranker needs a fitted generator; train both, or the generator alone")
    model = self.fresh_generator(environment)
    rows = rows_to_learn(self.config, model.objective, log)
    batches = rows.batches(
      environment.tables.users, batch_size=settings.batch_size, seed=self.config.seed
    )
    self._compile_loss(model, len(rows) * environment.tables.schema.num_items, Workers())
    loop.fit(model, batches, settings, rows=len(rows), name="generator")
    self._keep(environment, model.towers, model.ranker, [])
    return self

  def restore(self, environment: Environment, workdir: pathlib.Path) -> bool:
    """Loads the model that `fit` finished with these settings; whether there is one."""
    history = self.finished_history(environment, workdir)
    if history is None:
      return False
    self._stages = workdir / "stages"
    model = self.fresh_generator(environment)
    loop.restore_best(model.learned, self.directory(environment, workdir), history)
    self._keep(environment, model.towers, model.ranker, history)
    return True

  def finished_history(
    self, environment: Environment, workdir: pathlib.Path
  ) -> loop.History | None:
    """The epochs of the model that `fit` finished with these settings; None: there is none."""
    directory = self.directory(environment, workdir)
    return loop.finished_history(directory, self._training.epochs)

  def _keep(
    self,
    environment: Environment,
    towers: Generator,
    ranker: Ranker | None,
    history: loop.History,
  ) -> None:
    """What this model is from now on; `ranker` learned with it, None: that of the environment."""
    self._environment = environment if ranker is None else environment.with_ranker(ranker)
    self._generator, self._history = towers, history
    self._served = None  # made when it is first asked

  @property
  def environment(self) -> Environment:
    """The log, ranker and evaluator that this model was fitted in."""
    return self._fitted()[0]

  @property
  def towers(self) -> Generator:
    """The fitted generator."""
    return self._fitted()[1]

  @property
  def epochs(self) -> loop.History:
    """One entry for each epoch; `history` has the same as a DataFrame."""
    return self._history

  @property
  def slate_size(self) -> int:
    """K, how many candidates the ranker orders."""
    return self.config.slate_size

  @property
  def history(self) -> pd.DataFrame:
    """One row for each epoch: training metrics, and scores as split/stage/metric."""
    rows = [
      {
        "epoch": entry["epoch"],
        **{name: entry[name] for name in ("input_wait_share",) if name in entry},
        "best": entry["epoch"] == loop.best_epoch(self._history)["epoch"],
        **entry["training"],
        **{
          f"{split}/{stage}/{metric}": value
          for split, stages in entry["scores"].items()
          for stage, values in stages.items()
          for metric, value in values.items()
        },
      }
      for entry in self._history
    ]
    return pd.DataFrame(rows, columns=None if rows else ["epoch", "best"]).set_index("epoch")

  @property
  def stage(self) -> str:
    """The policy of both stages that the loss trained: "two_stage" or "distinct"."""
    if self._environment is None and self._served is not None:
      return self._served.settings.get("stage", "two_stage")
    return self.objective().stage

  def policy(
    self, stage: str | None = None, temperature: float = 1.0, length: int | None = None
  ) -> RecommenderPolicy:
    """A policy of this model, for `evaluate`.

    Args:
      stage: "two_stage", generator and ranker, "distinct", the same on candidates without repeats,
        or "one_stage", the generator alone, draw an item (on a log of slates each slot, without
        repeats where the log's slates have none); "served" shows the list of `recommend`, and its
        value is the mean reward of an item of it. None: what the loss trained, see `stage`.
      temperature: divides the generator's logits; above 1 explores more. Not for "served".
      length: how many items "served" shows, at most the slate size; None: 1, or on a log of slates
        a list of as many as it has slots, whose value is the sum of its rewards.

    Raises:
      InputError: the model is not fitted, there is no such stage, or an option does not fit it.
    """
    if self._environment is None and self._served is None:
      raise InputError("this recommender is not fitted; call fit() or load() first")
    stage = self.stage if stage is None else stage
    stages = ("one_stage", *POLICIES, SERVED)
    if stage not in stages:
      raise InputError(f"policy: stage must be one of {', '.join(stages)}, got {stage!r}")
    if stage == SERVED and temperature != 1:
      raise InputError("policy: what is served is the same at every temperature; leave it out")
    if stage != SERVED and length is not None:
      raise InputError(f"policy: length is of stage {SERVED!r} alone, got stage {stage!r}")
    if length is not None and not 1 <= length <= self.slate_size:
      raise InputError(
        f"policy: length must lie between 1 and the slate size {self.slate_size}, got {length}"
      )
    if not temperature > 0:
      raise InputError(f"policy: temperature must be above 0, got {temperature}")
    return RecommenderPolicy(self, stage, temperature, length)

  def recommend(self, users: Users, k: int = 10, exclude: Excluded | None = None) -> pd.DataFrame:
    """The best items of each user: the generator's candidates in the ranker's order.

    Args:
      users: ids of known users; or a DataFrame with a column for each raw feature, for users known
        or not. With the column "user_id", features of known users may be left out. Context
        features are columns, too. A bag is a list, or text separated by "|". Where items come and
        go, those that there are at the column "time"; without it, at the newest of the log.
      k: how many items for each user, at least 1.
      exclude: items never to recommend: a dict from user id to items, or a list for each user.

    Returns:
      columns user, rank (from 1), item, title, score (the ranker's) and generator_score.

    Raises:
      InputError: a user is unknown, or a column is missing.
    """
    return self._answering().recommend(users, k, exclude)

  def explain(self, users: Users, items: Sequence[Any]) -> pd.DataFrame:
    """The clauses that one item matches for each user; of generator=casmos.

        shown = model.recommend(["u42"])
        model.explain(shown["user"], shown["item"])

    Args:
      users: as for `recommend`; a user may come several times.
      items: an id for each user.

    Returns:
      columns user, item, clause and weight, the largest weights first. The weights of a pair sum to
      its generator_score, less 30 where that is below the threshold.

    Raises:
      InputError: the generator has no clauses, or an item or a user is unknown.
    """
    return self._answering().explain(users, items)

  def export(
    self,
    directory: str | pathlib.Path,
    *,
    keep: int = serving.KEEP,
    users: bool = True,
    removed: Sequence[str] = (),
    new: serving.NewItems | None = None,
    index: tuple[int, int] | None = None,
  ) -> pathlib.Path:
    """Writes the next version of a SavedModel for TensorFlow Serving, and for `load`.

    Args:
      directory: holds the versions; its name is the model's.
      keep: how many versions stay, the new one included.
      users: whether to include the table of user features, so that a loaded model finds users by
        id.
      removed, new: items that disappeared or appeared since training; see `serving.change`.
      index: cells and probes of an approximate index for `recommend`: items are in so many cells,
        of which a request visits the best few. None: it scores the whole catalogue.

    Returns:
      The new version's directory.

    Raises:
      InputError: the model is not fitted here, or the items do not fit.
      RunError: the SavedModel does not answer as this model does; it does not appear.
    """
    environment, _ = self._fitted()
    servable = self._servable(removed, new, index)
    served, requests = self._serve(servable), dict(environment.requests)
    if TIME in served.settings:
      requests[TIME] = np.full(len(requests["exclude"]), served.settings[TIME])
    return serving.export(
      servable, pathlib.Path(directory), requests, keep=keep, extra=served.files(users=users)
    )

  def plot(self) -> Figure:
    """Training loss and validation scores by epoch; with baselines, unless the model was loaded."""
    if not self._history:
      raise InputError("this recommender has no history; call fit() first")
    environment = self._environment
    if environment is None:
      return self._curves({}, metrics.HELD_OUT)
    baselines = environment.baselines(Workspace(self._stages), self.slate_size, self.stage)
    return self._curves(baselines, environment.evaluator.metrics)

  def _curves(self, baselines: Mapping[str, Scores], measured: metrics.Metrics) -> Figure:
    generator = self.config.generator
    turn = generator.turn_epochs if generator.train == "both" else 0
    return plots.run_curves(self._history, baselines, self._title(), measured, turn_epochs=turn)

  def report(
    self,
    workdir: pathlib.Path,
    baselines: Mapping[str, Scores],
    timings: Mapping[str, Mapping[str, Any]],
    exported: pathlib.Path,
  ) -> tuple[dict[str, Any], str]:
    """Writes config.json, metrics.json, table.csv and curves.png of a run.

    Args:
      workdir: of the fit; the generator's own directory gets the same files.
      baselines: of the environment.
      timings: by stage.
      exported: where the SavedModel is.

    Returns:
      The metrics, and a summary to print.
    """
    environment, _ = self._fitted()
    evaluator, history = environment.evaluator, self._history
    best = loop.best_epoch(history)
    values = {
      "loss": self.loss_name,
      "best_epoch": best["epoch"],
      **best["scores"],
      "baselines": baselines,
      **environment.facts,
      "notes": [*environment.notes, *evaluator.warnings(best["scores"])],
      "export": str(exported),
      "timings": timings,
    }
    table = run_report.score_table(
      {self.loss_name: best["scores"], **baselines}, metrics=evaluator.metrics
    )
    for warning in run_report.health_warnings(history[-1]["training"], self.loss_name):
      _log.warning("%s", warning)
    directory = self.directory(environment, workdir)
    draw = functools.partial(self._curves, baselines, evaluator.metrics)
    places = directory, workdir
    plotting.save({place / "curves.png": draw for place in places})
    for place in places:
      write_record(place / "config.json", dataclasses.asdict(self.config))
      write_json(place / METRICS, values)
      write_text(place / "table.csv", run_report.flat_csv(table))
      if environment.examination is not None:
        environment.examination.save(place)
      if isinstance(self._generator, StructuredQueries):
        write_text(place / casmos.FILE, self._generator.current().to_json())
    if isinstance(self._generator, StructuredQueries):
      self._report_threshold(self._generator, environment, workdir)
    notes = [*values["notes"], *run_report.unknown_values(table, evaluator.metrics)]
    summary = [
      run_report.format_table(table, evaluator.metrics),
      *(["\n".join(f"- {note}" for note in notes)] if notes else []),
      run_report.format_timings(timings),
      f"Best epoch {best['epoch']} of {len(history)}. Results: {directory}\nSavedModel: {exported}",
    ]
    return values, "\n\n".join(summary)

  def _report_threshold(
    self, generator: StructuredQueries, environment: Environment, workdir: pathlib.Path
  ) -> None:
    """Writes threshold.csv and threshold.png, and logs what the chosen threshold costs."""
    assert isinstance(environment.log, LogRows)
    curve = threshold_curve.measured(generator, environment, environment.log)
    write_text(workdir / "threshold.csv", curve.to_csv(index=False, float_format="%.4g"))
    plotting.save({workdir / "threshold.png": functools.partial(threshold_curve.draw, curve)})
    query = generator.current()
    _log.info("casmos: %d clauses, threshold %.4g", len(query.clauses), query.threshold or 0.0)

  @property
  def loss_name(self) -> str:
    """The name of the objective."""
    if self._environment is None and self._served is not None:
      return self._served.settings["loss"]
    return self.config.loss if self._loss is None else type(self._loss).__name__

  def objective(
    self, reward_scale: float = 1.0, examination: Sequence[float] | None = None
  ) -> OffPolicyLoss:
    """The loss, with the slate size of this model, the scale of rewards and the examined slots.

    Raises:
      InputError: the loss does not have one of the options, or a value does not fit.
    """
    run: dict[str, Any] = {"slate_size": self.slate_size, "reward_scale": reward_scale}
    if examination is not None:
      run["examination"] = examination
    if self._loss is None:
      run["seed"] = self.config.seed
      taken = losses.find(self.config.loss).parameters()
      run = {name: value for name, value in run.items() if name in taken}
      return losses.get(self.config.loss, **self.config.loss_options, **run)
    run = {name: value for name, value in run.items() if name in self._loss.parameters()}
    return type(self._loss)(**{**_options(self._loss), **run}) if run else self._loss

  def fresh_towers(self, environment: Environment) -> Generator:
    """The generator before training."""
    settings = self.config.generator
    if self._has_clauses:
      if self._stages == pathlib.Path():
        self._temporary = tempfile.TemporaryDirectory(prefix="tf_twostage-")
        self._stages = pathlib.Path(self._temporary.name)
      of_clauses, seed = self.config.clauses, self.config.environment_seed
      return casmos.structured_queries(environment, of_clauses, Workspace(self._stages), seed)
    if self.config.support.support_size:
      settings = dataclasses.replace(settings, sparse_l2=True)
    start = environment.item_bias if settings.item_bias else None
    towers = TwoTower.of(
      environment.tables,
      self.config.encoder,
      settings,
      item_bias=settings.item_bias if start is None else start,
      **self._towers,
    )
    if self._towers and not self._digest:
      self._digest = towers.custom_digest()
    return towers

  def fresh_generator(
    self, environment: Environment, generator: Generator | None = None
  ) -> CandidateGenerator:
    """The model with its objective before training; sets the seed of all that follows.

    A fitted `generator` is held fixed.
    """
    tf.keras.utils.set_random_seed(self.config.seed)
    length = self.config.encoder.sequence_length
    for name, history in getattr(environment.log, "histories", {}).items():
      if history.length < length:
        raise InputError(
          f"sequence_length is {length}, but {name!r} has {history.length} items in this"
          " environment; make the environment with the longer one"
        )
    towers = generator or self.fresh_towers(environment)
    towers.trainable = generator is None
    ranker = self._fresh_ranker(environment) if self._trains_ranker else None
    objective = self.objective(environment.log.rewards().scale, environment.slot_examination)
    settings, turn, ranker_optimizer = self.config.generator, 0, None
    if ranker is not None and settings.train == "both":
      rows = len(rows_to_learn(self.config, objective, environment.log))
      turn = settings.turn_epochs * max(1, rows // settings.batch_size)
      ranker_optimizer = loop.make_optimizer(settings.of_ranker)
      ranker_optimizer.build(ranker.towers.trainable_variables)
    return CandidateGenerator(
      towers,
      objective,
      environment.ranker_logits,
      self._support(environment, objective),
      self.config.generator.precision,
      ranker,
      turn,
      ranker_optimizer,
    )

  def _compile_loss(self, model: CandidateGenerator, pairs: int, workers: Workers) -> None:
    """Compiles the loss of a model, if asked to or if training on so many pairs is then faster."""
    settings = self.config.generator
    if settings.jit_compile and not workers.alone:
      raise InputError("jit_compile: replicas do not compile the loss; leave it out")
    able = model.objective.compiles and workers.alone and not self.config.support.support_size
    gains = able and settings.epochs * pairs >= _WORTH_COMPILING
    if gains if settings.jit_compile is None else settings.jit_compile:
      model.compile_loss()

  @property
  def _has_clauses(self) -> bool:
    return self.config.generator.generator == "casmos"

  @property
  def _training(self) -> GeneratorConfig:
    """How the generator is trained; where its weights are fixed, it is only evaluated."""
    settings = self.config.generator
    if self.config.clauses.train_clauses:
      return settings
    return dataclasses.replace(settings, epochs=1)

  @property
  def _trains_ranker(self) -> bool:
    return self.config.generator.train != "generator"

  def _fresh_ranker(self, environment: Environment) -> Ranker:
    if environment.trainable_ranker is None:
      raise InputError(
        f"train={self.config.generator.train}: this ranker was not fitted to the rewards of the"
        " log, and cannot learn here; leave the ranker and the log's ranker scores out, or train"
        " the generator alone"
      )
    return environment.trainable_ranker()

  def _fitted_generator(self, environment: Environment, workdir: pathlib.Path) -> Generator | None:
    """The generator behind which the ranker alone learns; None: the generator learns."""
    if self.config.generator.train != "ranker":
      return None
    self._fresh_ranker(environment)  # refused before anything is trained
    first = copy.copy(self)
    settings = dataclasses.replace(self.config.generator, train="generator", ranker_rate=None)
    first.config = dataclasses.replace(self.config, generator=settings)
    return first.fit(environment, workdir=workdir).towers

  def _support(self, environment: Environment, objective: OffPolicyLoss) -> SampledSupport | None:
    settings, num_items = self.config.support, environment.tables.schema.num_items
    if not settings.support_size:
      return None
    if settings.support_size > num_items:
      _log.warning(
        "support_size is %d, more than the %d items of the catalogue: this costs more than the"
        " whole catalogue, and is less exact; support_size 0 trains against the whole catalogue",
        settings.support_size,
        num_items,
      )
    counts = rows_to_learn(self.config, objective, environment.log).shown(num_items)
    return SampledSupport(
      losses.DRAWS[settings.support_draws](counts),
      num_items=num_items,
      size=settings.support_size,
      seed=self.config.seed,
      hard_candidates=settings.hard_candidates,
      hard_refresh_steps=settings.hard_refresh_steps,
    )

  def check_catalogue(self, num_items: int) -> None:
    """Raises: InputError: the settings need more items than the catalogue has."""
    if self.config.support.support_size:
      check_hard_candidates(self.config.support.hard_candidates, num_items)

  def _check_settings(self) -> None:
    objective = self.objective()
    positives_only(self.config, objective)
    if self._has_clauses and self._towers:
      raise InputError("generator=casmos has no towers; leave user_tower and item_tower out")
    if self._trains_ranker and not objective.trains_ranker:
      able = [name for name, loss in losses.LOSSES.items() if loss.trains_ranker]
      raise InputError(
        f"train={self.config.generator.train}: {type(objective).__name__} teaches the generator"
        f" alone; choose the loss {' or '.join(able)}, or leave train out"
      )
    if self.config.generator.jit_compile and (
      self.config.support.support_size or not objective.compiles
    ):
      raise InputError(
        f"jit_compile: {type(objective).__name__} with these settings draws at random, which XLA"
        " does differently; leave it out"
      )
    settings, rows = self.config.support, self.config.generator.batch_size
    if settings.support_size and objective.takes_slates:
      raise InputError(
        f"support_size: {type(objective).__name__} needs the whole catalogue; leave it out"
      )
    certain = rows + settings.hard_candidates
    if 0 < settings.support_size <= certain:
      raise InputError(
        f"support_size is {settings.support_size}, but a batch of {rows} rows and"
        f" {settings.hard_candidates} hard candidates fill {certain} places and leave none for"
        " draws; raise support_size, or lower batch_size or hard_candidates"
      )

  def _adapt_slate(self, num_items: int) -> None:
    if self._adapts_slate:
      size = min(_DEFAULTS.slate_size, num_items)
      self.config = dataclasses.replace(self.config, slate_size=size)
    self.check_catalogue(num_items)

  def directory(self, environment: Environment, workdir: pathlib.Path) -> pathlib.Path:
    """Of the generator with these settings; different settings never share a directory."""
    config, objective = self.config, self.objective()
    rows = {"positives_only": positives_only(config, objective)}
    depends_on: dict[str, Any] = {
      "environment": environment.name,
      "encoder": dataclasses.asdict(config.encoder),
      "generator": dataclasses.asdict(config.generator) | rows,
      "support": dataclasses.asdict(config.support),
      "loss": _options(objective),
      "slate_size": config.slate_size,
      "validation_users": config.data.validation_users,
      "seed": config.seed,
    }
    if self._digest:
      depends_on["towers"] = self._digest
    if self._has_clauses:
      depends_on["clauses"] = dataclasses.asdict(config.clauses)
    else:
      del depends_on["generator"]["generator"]
    name = f"{self.loss_name}-seed{config.seed}-{fingerprint(depends_on)}"
    return workdir / "generators" / name

  def _fitted(self) -> tuple[Environment, Generator]:
    if self._environment is None or self._generator is None:
      raise InputError(
        "this recommender was loaded from an export; copy its directory"
        if self._served is not None
        else "this recommender is not fitted; call fit() first"
      )
    return self._environment, self._generator

  def _servable(
    self,
    removed: Sequence[str] = (),
    new: serving.NewItems | None = None,
    index: tuple[int, int] | None = None,
  ) -> serving.ServableRecommender:
    environment, towers = self._fitted()
    pair = serving.Pair(
      environment.tables.schema, towers, environment.slate_ranker, environment.titles
    )
    changed = serving.change(pair, removed=removed, new=new)
    ids = (of.schema.item_id.vocabulary for of in (pair, changed))
    catalogues = environment.log.catalogues
    interval = None if catalogues is None else catalogues.interval_of(*ids)
    return serving.ServableRecommender(*changed, self.slate_size, interval, self.stage, index)

  def _serve(self, servable: serving.ServableRecommender) -> Served:
    environment, _ = self._fitted()
    settings: dict[str, Any] = {
      "slate_size": self.slate_size,
      "loss": self.loss_name,
      "stage": self.stage,
      "history": self._history,
      "sequence_length": self.config.encoder.sequence_length,
    }
    if (catalogues := environment.log.catalogues) is not None and catalogues.changes:
      settings[TIME] = catalogues.newest
    return Served.of(servable, environment.tables.schema, environment.users, settings)

  def _answering(self) -> Served:
    if self._served is None:
      self._served = self._serve(self._servable())
    return self._served

  def _save(self, directory: pathlib.Path) -> None:
    """Writes the fitted model for `load`, without the tests and files of an export."""
    servable = self._servable()
    files = self._serve(servable).files(users=True)
    serving.publish(directory, lambda version: serving.save(servable, version, files), keep=1)

  def _hyper_parameters(self, objective: OffPolicyLoss) -> dict[str, Any]:
    """Settings that the result depends on, apart from the environment; for TensorBoard."""
    settings = {
      "loss": self.loss_name,
      "slate_size": self.slate_size,
      "seed": self.config.seed,
      "embedding_stddev": self.config.encoder.embedding_stddev,
      **_flat_options(objective),
      **dataclasses.asdict(self.config.generator),
      "positives_only": positives_only(self.config, objective),
      **dataclasses.asdict(self.config.support),
    }
    return {name: value for name, value in settings.items() if value is not None}

  def _title(self) -> str:
    return f"{self.config.name}: {self.loss_name}"

  def __repr__(self) -> str:
    state = "not fitted"
    if self._history:
      best = loop.best_epoch(self._history)
      state = f"best epoch {best['epoch']} of {len(self._history)}"
    return f"TwoStageRecommender(loss={self.loss_name}, slate_size={self.slate_size}; {state})"

  def _repr_html_(self) -> str:
    table = self.history.tail(5).to_html(float_format="{:.4g}".format) if self._history else ""
    return f"<p>{html.escape(repr(self))}</p>{table}"


@dataclasses.dataclass(frozen=True)
class RecommenderPolicy:
  """The policy of a recommender, on whichever log it is asked about.

  Attributes:
    model: fitted or loaded.
    stage: "one_stage", "two_stage", "distinct" or "served".
    temperature: divides the generator's logits.
    length: how many items are served; None: one, or a list for all slots of a log of slates.
  """

  model: TwoStageRecommender
  stage: str
  temperature: float = 1.0
  length: int | None = None

  def on(self, log: BanditLog | EvaluationLog, name: str = "recommender") -> TargetPolicy:
    """The policy on the rows of a log with the same items, in any order.

    Args:
      log: a user's log, or an evaluation log of the environment that the model was fitted in.
      name: for tables and plots.

    Raises:
      InputError: the log has other items, or lacks a feature.
    """
    served, environment = self.model._answering(), self.model._environment
    if isinstance(log, BanditLog):
      order = served.order_of(log.schema.item_id.vocabulary, log.name)
      rows, users, items = log.rows, log.users, log.schema.item_id.vocabulary
    else:
      if environment is None:
        raise InputError("a loaded model is evaluated on a BanditLog, not on an EvaluationLog")
      order, rows, users = None, log.rows, environment.users
      items = environment.tables.schema.item_id.vocabulary
    scores = served.scores(rows, users, items)
    slate_log = log.slate_log if isinstance(log, EvaluationLog) else log
    has_slates = slate_log is not None and slate_log.slate is not None
    in_slots = self.stage == SERVED and has_slates
    length = self._list_length(rows) if in_slots else self.length or 1

    def both(at: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
      logits, ranked = scores(at)
      if order is not None:
        logits, ranked = (tf.gather(values, order, axis=1) for values in (logits, ranked))
      return policies.restricted(logits, rows.available(at)), ranked

    def slots(at: np.ndarray) -> np.ndarray:
      """1 for the item of the list in the slot of each row."""
      assert rows.position is not None
      first, context = distinct_contexts(rows.select(at))
      logits, ranked = both(at[first])
      lists = _served(logits, ranked, self.model.slate_size, length).numpy()
      return tf.one_hot(lists[context, rows.position[at]], logits.shape[1]).numpy()

    def probabilities(at: np.ndarray) -> np.ndarray:
      logits, ranked = both(at)
      if self.stage == SERVED:
        shown = _served(logits, ranked, self.model.slate_size, length)
        counts = tf.reduce_sum(tf.one_hot(shown, logits.shape[1]), axis=1)
        return (counts / tf.reduce_sum(counts, axis=1, keepdims=True)).numpy()
      logits /= self.temperature
      if self.stage == "one_stage":
        return policies.SoftmaxPolicy(logits).probabilities().numpy()
      return POLICIES[self.stage](logits, ranked, self.model.slate_size).probabilities().numpy()

    titles = {**STAGES, **TWO_STAGES, SERVED: f"as served, top {length}"}
    if in_slots:
      return TargetPolicy(name, titles[self.stage], slots, by_row=True)
    distinct = has_slates and slate_log is not None and not has_repeats(slate_log)
    return TargetPolicy(name, titles[self.stage], probabilities, distinct=distinct)

  def _list_length(self, rows: LogRows) -> int:
    """The slots of a log of slates, which a served list must fill."""
    assert rows.position is not None
    slots = int(rows.position.max()) + 1
    if self.length not in (None, slots):
      raise InputError(
        f"policy: length is {self.length}, but the log's slates have {slots} slots; leave it out"
      )
    if slots > self.model.slate_size:
      raise InputError(
        f"policy: the log's slates have {slots} slots, and the model serves at most its slate_size"
        f" of {self.model.slate_size}; raise it"
      )
    return slots


def _served(logits: tf.Tensor, ranker_logits: tf.Tensor, slate_size: int, length: int) -> tf.Tensor:
  """The first items of the slate in the ranker's order, best first: [B, length]."""
  slate, _ = retrieve(logits, None, min(slate_size, logits.shape[1]))
  scores = tf.gather(ranker_logits, tf.maximum(slate, 0), batch_dims=1)
  return rerank(slate, scores, length)[0]


def positives_only(config: Config, objective: OffPolicyLoss) -> bool:
  """Whether the generator learns from rewarded rows alone: as configured, or as the loss needs.

  Raises:
    InputError: it is so configured, and wrong for this loss.
  """
  asked, reason = config.generator.positives_only, objective.needs_all_rows
  if asked and reason:
    raise InputError(
      f"positives_only is wrong for {type(objective).__name__}: {reason}; leave it out"
    )
  return not reason if asked is None else asked


def rows_to_learn(config: Config, objective: OffPolicyLoss, log: TrainingRows) -> TrainingRows:
  """The rows of a log that the generator is trained on."""
  return log.positives() if positives_only(config, objective) else log


def _options(loss: OffPolicyLoss) -> dict[str, Any]:
  return {name: getattr(loss, name) for name in loss.parameters()}


def _flat_options(loss: OffPolicyLoss) -> dict[str, Any]:
  """Options as numbers and texts; those of importance weights are called weight_..."""
  flat: dict[str, Any] = {}
  for name, value in _options(loss).items():
    if isinstance(value, losses.ImportanceWeights):
      weights = dataclasses.asdict(value)
      flat["self_normalize"] = weights.pop("self_normalize")
      flat |= {f"weight_{n}": v for n, v in weights.items()}
    else:
      flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
  return flat
