"""Exports what launch.train trained with the same flags, as the next version of the SavedModel.

python -m launch.export --flagfile=launch/synthetic.flags
python -m launch.export --flagfile=launch/ml1m.flags --data_dir=DIR \\
    --add_items=new.csv --remove_items=gone.txt
python -m launch.export --flagfile=launch/user_log.flags --log=LOG --index_cells=1000

New items are scored by their features alone; removed items are never returned. The files list all
changes since training, not since the last export.
"""

import pathlib

from absl import flags

from launch import config as launch_config
from tf_twostage import environment as environments
from tf_twostage.errors import InputError
from tf_twostage.recommender import TwoStageRecommender
from tf_twostage.serving import catalogue
from tf_twostage.workspace import Workspace


def define_flags() -> None:
  launch_config.define_flags(overwrite=False)
  text = "new items: CSV or Parquet with the item features and titles; | separates values of bags"
  flags.DEFINE_string("add_items", None, text)
  flags.DEFINE_string("remove_items", None, "items to remove: a text file with one id per line")
  text = (
    "cells of an approximate index for `recommend`, about the square root of the items; 0: none"
  )
  flags.DEFINE_integer("index_cells", 0, text, lower_bound=0)
  text = "cells that a request visits; needs --index_cells; default: a sixteenth of them"
  flags.DEFINE_integer("index_probes", None, text, lower_bound=1)


def main() -> None:
  config = launch_config.config_from_flags()
  workdir, values = launch_config.work_path(config), flags.FLAGS
  cells, probes = values.index_cells, values.index_probes
  if probes and not cells:
    raise InputError("--index_probes changes nothing without --index_cells; leave it out")
  unfinished = InputError(
    f"{workdir} has no finished generator of these settings; train it first: launch.train with the"
    " same flags"
  )
  if not any((workdir / "generators").glob("*/checkpoints")):  # before anything is built
    raise unfinished

  environment = environments.make(config, Workspace(workdir / "stages"))
  model = TwoStageRecommender.from_config(config)
  if not model.restore(environment, workdir):
    raise unfinished
  added, removed = values.add_items, values.remove_items
  schema = environment.tables.schema
  exported = model.export(
    launch_config.export_directory(config),
    keep=values.keep,
    new=catalogue.read_new(pathlib.Path(added), schema) if added else None,
    removed=catalogue.read_removed(pathlib.Path(removed)) if removed else (),
    index=(cells, probes or max(1, cells // 16)) if cells else None,
  )
  print(f"SavedModel: {exported}")


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main)
