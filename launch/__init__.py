"""Commands. Each is `python -m launch.NAME`, with `--help` and flag files beside this file."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads: its start-up chatter
