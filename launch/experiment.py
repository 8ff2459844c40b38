"""Trains every loss over many seeds in one environment and says, with statistics, which wins.

python -m launch.experiment --flagfile=launch/synthetic.flags --seeds=3
python -m launch.experiment --flagfile=launch/ml1m.flags --data_dir=DIR \\
    --losses=cross_entropy,ips,two_stage_ips,ips:policy=two_stage --seeds=20
python -m launch.experiment --flagfile=launch/ml1m.flags --data_dir=DIR \\
    --losses=two_stage_ips --sweep=alpha=1e-3,1e-2,sampling_temperature=1,2.718 --seeds=3

A loss may carry settings of its own, LOSS:flag=value:flag=value; flags of the objective, the
generator and its encoder are meant. NAME=LOSS:... gives it a name in tables and figures. The same
command goes on where a killed one stopped.
"""

from absl import flags

from launch import config as launch_config

_OWN_FLAGS = {
  "losses": "what to compare, [NAME=]LOSS[:flag=value...], comma-separated; the first is the"
  " reference",
  "seeds": "seeds of each: 0 to this, exclusive",
  "sweep": "flag=value,value,...,flag=value,...: tries all combinations with every loss;"
  " validation users choose one for each",
  "processes": "generators fitted at a time; 0: as many as cores and memory allow",
}


def define_flags() -> None:
  launch_config.define_flags(export=False)
  flags.DEFINE_list("losses", ["cross_entropy", "ips", "two_stage_ips"], _OWN_FLAGS["losses"])
  flags.DEFINE_integer("seeds", 20, _OWN_FLAGS["seeds"], lower_bound=1)
  flags.DEFINE_string("sweep", "", _OWN_FLAGS["sweep"])
  flags.DEFINE_integer("processes", 0, _OWN_FLAGS["processes"], lower_bound=0)


def main() -> None:
  config = launch_config.config_from_flags()
  values = flags.FLAGS
  plan = launch_config.plan_variants(config, values.losses, values.sweep)
  workdir = launch_config.work_directory(config)

  from tf_twostage import experiment  # brings TensorFlow, which wrong flags can do without

  variants = [experiment.Variant(*variant) for variant in plan]
  print(
    experiment.run(
      config, variants, seeds=values.seeds, workdir=workdir, processes=values.processes
    )
  )


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main, {"The experiment": tuple(_OWN_FLAGS)})
