"""Estimates what finished generators would earn, and other policies, off-policy.

python -m launch.evaluate --flagfile=launch/synthetic.flags
python -m launch.evaluate --flagfile=launch/ml1m.flags --data_dir=DIR \\
    --losses=cross_entropy,ips,two_stage_ips --seeds=20
python -m launch.evaluate --flagfile=launch/synthetic.flags --policy_file=uniform.csv

Takes the flags that trained them, of launch.train or of launch.experiment: what they name must have
finished. docs/evaluation.md says how to read the answer.
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from launch import config as launch_config

_UNKNOWN_TO_TRAINING = ("all", "policy_file")


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


def main() -> None:
  config = launch_config.config_from_flags()
  values = flags.FLAGS
  plan = [(config.loss, config, config.loss)]
  if values.losses:
    plan = launch_config.plan_variants(config, values.losses, "")
  seeds = [config.seed] if values.seeds is None else range(values.seeds)
  several = values.losses is not None or values.seeds is not None or values.all

  from tf_twostage import evaluate  # brings TensorFlow, which wrong flags can do without

  generators = [
    evaluate.Generator(label, dataclasses.replace(variant, seed=seed))
    for label, variant, _ in plan
    for seed in seeds
  ]
  print(
    evaluate.run(
      config,
      None if values.all else generators,
      launch_config.work_path(config),
      policy_files=[pathlib.Path(path) for path in values.policy_file],
      training_command=training_command("experiment" if several else "train", sys.argv[1:]),
    )
  )


def training_command(name: str, arguments: Sequence[str]) -> str:
  """The command line of what trains, from the arguments of this command."""
  kept, skip = [], False
  for argument in arguments:
    flag = argument.lstrip("-").partition("=")[0]
    if skip or flag in _UNKNOWN_TO_TRAINING:
      skip = not skip and flag == "policy_file" and "=" not in argument
      continue
    kept.append(argument)
  return shlex.join(["python", "-m", f"launch.{name}", *kept])


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main)
