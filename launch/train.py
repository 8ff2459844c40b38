"""Trains a two-stage recommender off-policy, evaluates it and exports it.

python -m launch.train --flagfile=launch/synthetic.flags
python -m launch.train --flagfile=launch/ml1m.flags --data_dir=DIR
"""

from absl import flags

from launch import config as launch_config


def main() -> None:
  config = launch_config.config_from_flags()
  workdir = launch_config.work_directory(config)
  export_dir = launch_config.export_directory(config)

  from tf_twostage import pipeline  # brings TensorFlow, which --help and wrong flags can do without

  print(pipeline.run(config, workdir, export_dir, keep=flags.FLAGS.keep).summary)


if __name__ == "__main__":
  launch_config.define_flags()
  launch_config.run_command(main)
