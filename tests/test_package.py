"""Importing the package in the situations that users meet."""

import subprocess
import sys

import pytest
import tensorflow as tf


def python(code, **environment):
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "", **environment}
  )


def test_keras_2_is_active_whichever_comes_first():
  """This process imported the package first (tests/conftest.py), the other one TensorFlow."""
  assert tf.keras.Model.__module__.startswith("tf_keras")
  code = "import tensorflow as tf, tf_twostage"
  done = python(f"{code}; assert tf.keras.Model.__module__.startswith('tf_keras')")
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  ("code", "environment"),
  [
    ("import tensorflow as tf; tf.keras.Model; import tf_twostage", {}),
    ("import tf_twostage", {"TF_USE_LEGACY_KERAS": "0"}),
  ],
)
def test_keras_3_is_refused_with_the_remedy(code, environment):
  done = python(code, **environment)
  assert done.returncode != 0
  assert "TF_USE_LEGACY_KERAS=1" in done.stderr.splitlines()[-1]


def test_importing_the_package_alone_does_not_load_tensorflow():
  done = python("import sys, tf_twostage; assert 'tensorflow' not in sys.modules")
  assert done.returncode == 0, done.stderr
