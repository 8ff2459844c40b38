"""Commands. Each is `python -m launch.NAME`, with `--help` and flag files beside this file."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow loads: its start-up chatter
