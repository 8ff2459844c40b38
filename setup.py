"""Installs tf_twostage. The pins say why they are there."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
INIT = (HERE / "tf_twostage" / "__init__.py").read_text(encoding="utf-8")

PLOT = ["matplotlib>=3.8"]
# The serving protos ship per TensorFlow minor; another minor brings clashing descriptors.
SERVING = ["tensorflow-serving-api>=2.21,<2.22"]
DEV = [
  "bandit[toml]>=1.8",
  "hypothesis>=6.100",
  "mutmut>=3.8",
  "mypy>=1.11",
  "pandas-stubs",
  "pytest>=8",
  "pytest-xdist>=3.6",
  "ruff>=0.6",
  "types-PyYAML",
]

setup(
  name="tf_twostage",
  version=re.findall(r'^__version__ = "(.*)"', INIT, re.MULTILINE)[0],
  description="Two-stage recommenders trained off-policy, with the ranker in the loss (2-IPS).",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=find_packages(include=["tf_twostage", "tf_twostage.*", "launch"]),
  package_data={
    "launch": ["*.flags", "benchmark.yaml"],
    "tf_twostage": ["py.typed"],
    "tf_twostage.serving": ["templates/*"],
  },
  entry_points={"console_scripts": ["twostage = launch.__main__:main"]},
  python_requires=">=3.10,<3.14",
  install_requires=[
    "absl-py>=2.1",
    "numpy>=1.26",
    "pandas>=2.2",
    "scipy>=1.11",
    # tf_keras follows TensorFlow minor by minor, and TFRS needs Keras 2: the two move together.
    "tensorflow>=2.21,<2.22",
    "tf_keras>=2.21,<2.22",
    "tensorflow-recommenders==0.7.7",
    # TensorFlow 2.21 no longer brings TensorBoard with it.
    "tensorboard>=2.20",
    "tensorflow-datasets>=4.9.9",
    # tensorflow-datasets imports it and does not declare it.
    "importlib_resources",
    # Reads the text format of extreme multi-label data.
    "scikit-learn>=1.4",
    # tensorboard imports pkg_resources on some Python versions.
    "setuptools<81",
    "tqdm>=4.66",
    # The schema of a log is a YAML file, which people write by hand and comment.
    "PyYAML>=6.0",
    # Reads CSV and Parquet in chunks, several times faster than pandas; tensorflow-datasets needs
    # it anyway.
    "pyarrow>=15",
  ],
  extras_require={
    "plot": PLOT,
    "serving": SERVING,
    "dev": [*DEV, *PLOT, *SERVING],
  },
  classifiers=[
    "Programming Language :: Python :: 3.10",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
