"""Trains a two-stage recommender off-policy, evaluates it and exports it.

python -m launch.train --flagfile=launch/synthetic.flags
python -m launch.train --flagfile=launch/ml1m.flags --data_dir=DIR
TF_CONFIG=... python -m launch.train --flagfile=launch/ml1m.flags --distribution=multi_worker
"""

from absl import flags

from launch import config as launch_config
from tf_twostage.training.distribution import Job


def main() -> None:
  config = launch_config.config_from_flags()
  chief = Job.of(config).is_chief
  workdir = launch_config.work_directory(config) if chief else launch_config.work_path(config)
  export_dir = launch_config.export_directory(config)

  from tf_twostage import pipeline  # brings TensorFlow, which --help and wrong flags can do without

  print(pipeline.run(config, workdir, export_dir, keep=flags.FLAGS.keep).summary)


if __name__ == "__main__":
  launch_config.define_flags()
  launch_config.run_command(main)
