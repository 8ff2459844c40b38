"""Replays calls in a process that imports nothing but TensorFlow. `check.replay` runs this file.

  echo '[VERSION, CALLS, REPEATS, RESULT]' | python -I isolated_replay.py

TensorFlow is imported before the input is read. CALLS is a pickle of pairs (signature, inputs),
RESULT one of the dict at the end of `main`. The version is loaded twice: by the C++ loader, as a
server does, in a process without Python's TensorFlow; and into a session, which answers by feeding
and fetching the tensors that signatures name.
"""

import concurrent.futures
import ctypes
import functools
import importlib.util
import json
import multiprocessing
import pathlib
import pickle  # nosec B403 # between this process and its parent
import sys
import time

import numpy as np


@functools.cache
def library() -> ctypes.CDLL:
  """TensorFlow's C interface."""
  package = importlib.util.find_spec("tensorflow")  # does not import it
  assert package is not None
  assert package.origin is not None
  root = pathlib.Path(package.origin).parent
  found = ctypes.CDLL(str(next(root.glob("libtensorflow_cc.*"))))
  for name in ("NewStatus", "NewGraph", "NewSessionOptions", "LoadSessionFromSavedModel"):
    getattr(found, f"TF_{name}").restype = ctypes.c_void_p
  found.TF_Message.restype = ctypes.c_char_p
  return found


def load_natively(version: str) -> float:
  """Seconds that the C++ loader takes, restoring and initialising included."""
  status, graph, options = (
    ctypes.c_void_p(getattr(library(), f"TF_New{name}")())
    for name in ("Status", "Graph", "SessionOptions")
  )
  tags = (ctypes.c_char_p * 1)(b"serve")
  start = time.perf_counter()
  session = library().TF_LoadSessionFromSavedModel(
    options, None, version.encode(), tags, 1, graph, None, status
  )
  seconds = time.perf_counter() - start
  if library().TF_GetCode(status):
    raise RuntimeError(f"C++ loader: {library().TF_Message(status).decode()}")
  library().TF_CloseSession(ctypes.c_void_p(session), status)
  return seconds


def prepare() -> None:
  library()


def main(native: concurrent.futures.Executor) -> None:
  """Reads one request and answers it; `native` has a process that does not import TensorFlow."""
  import tensorflow as tf
  from tensorflow.python.framework import op_def_registry

  if not (request := sys.stdin.read()):
    return  # it is not needed any more
  version, calls, repeats, result_file = json.loads(request)
  native_load_seconds = native.submit(load_natively, version).result()

  start = time.perf_counter()
  session = tf.compat.v1.Session(graph=tf.Graph())
  with session.graph.as_default():
    signatures = tf.compat.v1.saved_model.load(session, ["serve"], version).signature_def
  load_seconds = time.perf_counter() - start

  @functools.cache
  def callable_of(signature):
    inputs, outputs = signatures[signature].inputs, signatures[signature].outputs
    return (
      session.make_callable([t.name for t in outputs.values()], [t.name for t in inputs.values()]),
      list(inputs),
      list(outputs),
    )

  answers, seconds = [], []
  sent = pathlib.Path(calls).read_bytes()
  for signature, inputs in pickle.loads(sent):  # nosec B301 # the parent wrote it
    run, feeds, fetches = callable_of(signature)
    # A session takes strings of any width only as objects.
    arrays = [inputs[name] for name in feeds]
    arrays = [array.astype(object) if array.dtype.kind in "SU" else array for array in arrays]
    answers.append(dict(zip(fetches, run(*arrays), strict=True)))
    times = np.empty(repeats)
    for turn in range(repeats):
      start = time.perf_counter()
      run(*arrays)
      times[turn] = time.perf_counter() - start
    seconds.append(times)

  graph = session.graph.as_graph_def()
  nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
  operations = {node.op for node in nodes} - {f.signature.name for f in graph.library.function}
  foreign = [op for op in operations if op_def_registry.get(op) is None or "PyFunc" in op]
  assert not foreign, f"needs operations that are not TensorFlow's own: {foreign}"
  modules = {"tf_twostage", "tensorflow_recommenders", "tf_keras"} & set(sys.modules)
  assert not modules, f"needed more than TensorFlow: {modules}"

  def described(tensors):
    return {
      name: f"{tf.dtypes.as_dtype(t.dtype).name} {tf.TensorShape(t.tensor_shape)}"
      for name, t in sorted(tensors.items())
    }

  result = {
    "answers": answers,
    "seconds": seconds,
    "load_seconds": load_seconds,
    "native_load_seconds": native_load_seconds,
    "operations": sorted(operations),
    "signatures": {
      name: {"inputs": described(s.inputs), "outputs": described(s.outputs)}
      for name, s in sorted(signatures.items())
      if s.inputs
    },
  }
  pathlib.Path(result_file).write_bytes(pickle.dumps(result))


if __name__ == "__main__":
  # The process is forked when it gets its first task, before TensorFlow is imported.
  forked = multiprocessing.get_context("fork")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=forked) as native:
    native.submit(prepare)
    main(native)
