"""Goes round the loop: serves a policy, logs what it shows, trains the next one on that log.

python -m launch.loop --flagfile=launch/loop.flags
python -m launch.loop --flagfile=launch/loop.flags --temperature=2 --draws=10 --rounds=6

Needs the extra [serving]. Users are simulated. Prints, of every policy, the off-policy estimate of
its value before it was served, its true value, and the mean reward that it logged.
"""

from absl import flags

from launch import config as launch_config
from tf_twostage.errors import InputError


def define_flags() -> None:
  launch_config.define_flags()
  flags.DEFINE_integer("rounds", 4, "policies, one after the other", lower_bound=1)
  flags.DEFINE_integer("draws", 4, "items that each policy shows each user", lower_bound=1)
  flags.DEFINE_float(
    "temperature", 1.0, "at which policies are served; above 1 they explore more", lower_bound=1e-3
  )


def main() -> None:
  config = launch_config.config_from_flags()
  workdir = launch_config.work_directory(config)
  export_dir = launch_config.export_directory(config)
  values = flags.FLAGS

  try:
    from tf_twostage import online_loop as loop
  except ModuleNotFoundError as error:
    raise InputError(f"no module {error.name}: pip install 'tf_twostage[serving]'") from error

  rounds = []
  the_loop = loop.Loop(config, workdir, draws=values.draws, temperature=values.temperature)
  for one in the_loop.run(export_dir, values.rounds, keep=values.keep):
    rounds.append(one)
    print(f"\n{loop.table(the_loop.logging_policy, rounds)}", flush=True)


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main, preset="loop")
