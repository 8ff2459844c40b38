"""Compares losses over many logs or seeds, with paired tests.

python -m launch.experiment --flagfile=launch/synthetic.flags --seeds=3
python -m launch.experiment --flagfile=launch/ml1m.flags --data_dir=DIR \\
    --losses=cross_entropy,ips,two_stage_ips,ips:policy=two_stage --seeds=20
python -m launch.experiment --flagfile=launch/ml1m.flags --data_dir=DIR \\
    --losses=two_stage_ips --sweep=alpha=1e-3,1e-2,sampling_temperature=1,2.718 --seeds=3
python -m launch.experiment --flagfile=launch/synthetic.flags --logs=10

A loss may carry settings of its own, LOSS:flag=value:flag=value; flags of the objective, the
generator and its encoder are meant. NAME=LOSS:... gives it a name in tables and figures. The same
command resumes a killed one.

With one log, errors are over training seeds, and say nothing about other logs. --logs repeats the
logging policy, the log and the ranker; errors are then over logs.
"""

from absl import flags

from launch import config as launch_config
from tf_twostage import experiment


def define_flags() -> None:
  launch_config.define_flags(export=False)
  text = "what to compare, [NAME=]LOSS[:setting=value...], comma-separated, the reference first"
  flags.DEFINE_list("losses", ["cross_entropy", "ips", "two_stage_ips"], text)
  text = "logs that are drawn, each with a logging policy and a ranker of its own"
  flags.DEFINE_integer("logs", 1, text, lower_bound=1)
  text = "training seeds of each loss and log; default 20, or 1 with several logs"
  flags.DEFINE_integer("seeds", None, text, lower_bound=1)
  text = (
    "setting=value,value,...,setting=value,...: tries all combinations with every loss, and the"
    " validation users choose one for each"
  )
  flags.DEFINE_string("sweep", "", text)
  text = "generators fitted at a time; 0: as many as cores and memory allow"
  flags.DEFINE_integer("processes", 0, text, lower_bound=0)


def main() -> None:
  config = launch_config.config_from_flags()
  values = flags.FLAGS
  plan = launch_config.plan_variants(config, values.losses, values.sweep)
  workdir = launch_config.work_directory(config)
  variants = [experiment.Variant(*variant) for variant in plan]
  print(
    experiment.run(
      config,
      variants,
      logs=values.logs,
      seeds=values.seeds or (20 if values.logs == 1 else 1),
      workdir=workdir,
      processes=values.processes,
    )
  )


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main)
