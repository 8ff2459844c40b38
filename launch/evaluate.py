"""Estimates what finished generators would earn, and other policies, off-policy.

python -m launch.evaluate --flagfile=launch/synthetic.flags
python -m launch.evaluate --flagfile=launch/ml1m.flags --data_dir=DIR \\
    --losses=cross_entropy,ips,two_stage_ips --seeds=20
python -m launch.evaluate --flagfile=launch/synthetic.flags --policy_file=uniform.csv

Takes the flags that trained them, of launch.train or of launch.experiment. All generators that
these flags name must have finished. docs/evaluation.md explains the output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from launch import config as launch_config
from launch import steps
from tf_twostage import environment as environments
from tf_twostage import evaluate
from tf_twostage.config import Config
from tf_twostage.errors import InputError
from tf_twostage.evaluation import policy_file, values
from tf_twostage.evaluation.estimators import ESTIMATORS, by_name
from tf_twostage.evaluation.slate_estimators import SLATE_ESTIMATORS
from tf_twostage.evaluation.values import REPORTED, TargetPolicy
from tf_twostage.experiment import finished
from tf_twostage.metrics import SERVED
from tf_twostage.recommender import METRICS, TwoStageRecommender
from tf_twostage.workspace import Workspace, results_directory, write_text

_UNKNOWN_TO_TRAINING = ("all", "policy_file", "estimators", "select", "mixture")


def define_flags() -> None:
  launch_config.define_flags(export=False, overwrite=False)
  text = "several losses, written as for launch.experiment; replaces --loss"
  flags.DEFINE_list("losses", None, text)
  text = "seeds 0 to this, exclusive; replaces --seed"
  flags.DEFINE_integer("seeds", None, text, lower_bound=1)
  text = "every finished generator of the environment in the work directory"
  flags.DEFINE_bool("all", False, text)
  text = (
    "probabilities of another policy: CSV or Parquet (item_id, probability and perhaps position),"
    " or .npy or .npz [rows of the evaluation log, items]; may be given several times"
  )
  flags.DEFINE_multi_string("policy_file", [], text)
  text = (
    f"estimators: {', '.join(ESTIMATORS)}; of slates {', '.join(SLATE_ESTIMATORS)}. By default"
    f" {', '.join(REPORTED)}; of slates those that fit what was logged"
  )
  flags.DEFINE_list("estimators", None, text)
  text = (
    "name the generator with the highest doubly robust value, with the ranker, less a penalty for"
    " thin support in the log"
  )
  flags.DEFINE_bool("select", False, text)
  text = (
    "shares of the generators in a mixture, in the order of --losses (and seeds), that is evaluated"
    " too: it draws a generator for each item, and then the item"
  )
  flags.DEFINE_list("mixture", [], text)


def main() -> None:
  config = launch_config.config_from_flags()
  asked = flags.FLAGS
  plan = [(config.loss, config, config.loss)]
  if asked.losses:
    plan = launch_config.plan_variants(config, asked.losses, "")
  seeds = [config.seed] if asked.seeds is None else range(asked.seeds)
  several = asked.losses is not None or asked.seeds is not None or asked.all
  generators = [
    (label, dataclasses.replace(variant, seed=seed)) for label, variant, _ in plan for seed in seeds
  ]
  print(
    run(
      config,
      None if asked.all else generators,
      launch_config.work_path(config),
      policy_files=[pathlib.Path(path) for path in asked.policy_file],
      training_command=steps.command_line(
        "experiment" if several else "train", without=_UNKNOWN_TO_TRAINING
      ),
      estimators=asked.estimators,
      select=asked.select,
      mixture=[*map(float, asked.mixture)],
    )
  )
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of what train left
    exported = json.loads((launch_config.work_path(config) / METRICS).read_bytes())["export"]
    print(f"\nNext: {steps.command_line('serve_check', f'--model={exported}', arguments=())}")


def run(
  config: Config,
  generators: Sequence[tuple[str, Config]] | None,
  workdir: pathlib.Path,
  *,
  policy_files: Sequence[pathlib.Path] = (),
  training_command: str,
  estimators: Sequence[str] | None = None,
  select: bool = False,
  mixture: Sequence[float] = (),
) -> str:
  """Evaluates the logging policy, generators alone, with the ranker and as served, and files.

  Args:
    config: makes the environment that all generators share.
    generators: label and settings of each; None: every finished generator in `workdir`.
    workdir: where they were trained; gets stages/ and evaluation/, or evaluation-2/, ... if it
      holds another evaluation.
    policy_files: see `policy_file.read`.
    training_command: trains them; for the message where one is missing.
    estimators: names in `ESTIMATORS` or `SLATE_ESTIMATORS`; None: see `values.reported`.
    mixture: shares of the generators in a mixture, with the ranker; empty: there is none.
    select: whether to add the generators in the order of `Evaluation.select`.

  Returns:
    The report.

  Raises:
    InputError: a generator has not finished, a file does not fit, or an option does not; nothing
      has been evaluated.
  """
  by_name(estimators or REPORTED, {**ESTIMATORS, **SLATE_ESTIMATORS})
  names = list(estimators or REPORTED)
  asked = [config, generators, list(map(str, policy_files)), names, select, list(mixture)]
  if select and "dr" not in names:
    raise InputError("--select needs the estimator dr: add it to --estimators")
  remedy = f"train with\n  {training_command}\nand evaluate again"
  if not any((workdir / "generators").glob("*/checkpoints")):  # before anything is built
    raise InputError(f"{workdir} holds no generator; {remedy}")

  workspace = Workspace(workdir / "stages")
  environment = environments.make(config, workspace)
  if generators is None:
    generators = [(v.label, v.config) for v in finished(config, environment, workdir)]
  models = {
    f"{label}, seed {own.seed}": TwoStageRecommender.from_config(own) for label, own in generators
  }
  unfinished = [
    name for name, model in models.items() if model.finished_history(environment, workdir) is None
  ]
  if unfinished or not models:
    which = f" of {'; '.join(unfinished)}" if unfinished else ""
    raise InputError(f"{workdir} has no finished generator{which}; {remedy}")
  if mixture and len(mixture) != len(models):
    raise InputError(f"--mixture has {len(mixture)} shares for {len(models)} generators")
  evaluation = environment.evaluation_log(workspace)
  if select and evaluation.slates is not None:
    raise InputError("--select needs the estimator dr, which is of single items, not of slates")
  item_ids = np.asarray(environment.tables.schema.item_id.vocabulary, object)
  in_files = [policy_file.read(path, evaluation, item_ids) for path in policy_files]

  def policies() -> Iterator[TargetPolicy]:
    """One model after the other is in memory, unless they are mixed."""
    if mixture:
      for model in models.values():
        model.restore(environment, workdir)
      both = [model.policy().on(evaluation) for model in models.values()]
      yield values.mixture("mixture", list(zip(mixture, both, strict=True)))
    for name, model in models.items():
      model.restore(environment, workdir)
      for stage in ("one_stage", model.stage, SERVED):
        yield model.policy(stage).on(evaluation, name)
    yield from in_files

  found = evaluate(
    evaluation,
    policies(),
    estimators or values.reported(evaluation),
    tables=environment.tables,
    encoder=config.encoder,
    reward_training=config.ranker,
    reward=config.reward,
    workdir=workdir,
    seed=config.environment_seed,
  )
  directory = results_directory(workdir / "evaluation", asked)
  report = found.save(directory)
  if select:
    ranked = found.select()
    text = ranked.to_csv(index=False, float_format="%.8g")
    write_text(directory / "selection.csv", text)
    shown = ranked.to_string(index=False, float_format="{:.4f}".format)
    report += f"\n\nGenerators with the ranker, by dr less the burden of thin support\n{shown}"
  return report


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main)
