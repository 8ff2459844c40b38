"""Replays calls in a process that knows nothing but TensorFlow. Started by `replay`, as a file.

  python -I replay_alone.py VERSION CALLS REPEATS ANSWERS

The version is loaded twice: by the C++ loader, which is the server's, before Python's TensorFlow
is there; and into a session, which answers as the server does, by feeding and fetching what
signatures name.

CALLS is an .npz of "<number>/<signature>/<input>"; ANSWERS gets one of "<number>/<output>", the
text "report" (JSON: signatures, seconds) and "<number>/seconds", [REPEATS].
"""

import collections
import ctypes
import functools
import importlib.util
import json
import pathlib
import sys
import time

import numpy as np


def load_natively(version: str) -> float:
  """Seconds that the C++ loader takes, restoring and initialising included."""
  package = importlib.util.find_spec("tensorflow")  # without importing it
  assert package is not None
  assert package.origin is not None
  root = pathlib.Path(package.origin).parent
  library = ctypes.CDLL(str(next(root.glob("libtensorflow_cc.*"))))
  for name in ("NewStatus", "NewGraph", "NewSessionOptions", "LoadSessionFromSavedModel"):
    getattr(library, f"TF_{name}").restype = ctypes.c_void_p
  library.TF_Message.restype = ctypes.c_char_p
  status = ctypes.c_void_p(library.TF_NewStatus())
  tags = (ctypes.c_char_p * 1)(b"serve")
  start = time.perf_counter()
  session = library.TF_LoadSessionFromSavedModel(
    ctypes.c_void_p(library.TF_NewSessionOptions()),
    None,
    version.encode(),
    tags,
    1,
    ctypes.c_void_p(library.TF_NewGraph()),
    None,
    status,
  )
  seconds = time.perf_counter() - start
  if library.TF_GetCode(status):
    raise RuntimeError(f"C++ loader: {library.TF_Message(status).decode()}")
  library.TF_CloseSession(ctypes.c_void_p(session), status)
  return seconds


def main(version: str, calls: str, repeats: int, answers: str) -> None:
  native_seconds = load_natively(version)

  import tensorflow as tf
  from tensorflow.python.framework import op_def_registry

  start = time.perf_counter()
  session = tf.compat.v1.Session(graph=tf.Graph())
  with session.graph.as_default():
    signatures = tf.compat.v1.saved_model.load(session, ["serve"], version).signature_def
  seconds = time.perf_counter() - start

  asked: dict[tuple[str, str], dict[str, np.ndarray]] = collections.defaultdict(dict)
  with np.load(calls) as stored:
    for key in stored:
      number, signature, name = key.split("/", 2)
      asked[number, signature][name] = stored[key]

  @functools.cache
  def callable_of(signature):
    given, wanted = signatures[signature].inputs, signatures[signature].outputs
    names = sorted(given), sorted(wanted)
    run = session.make_callable(
      [wanted[name].name for name in names[1]], [given[name].name for name in names[0]]
    )
    return run, *names

  out = {}
  for (number, signature), inputs in asked.items():
    run, given, wanted = callable_of(signature)
    # Strings of one width are no tensors.
    values = [inputs[name] for name in given]
    values = [value.astype(object) if value.dtype.kind in "SU" else value for value in values]
    for name, value in zip(wanted, run(*values), strict=True):
      out[f"{number}/{name}"] = value.astype(bytes) if value.dtype == object else value
    times = np.empty(repeats)
    for turn in range(repeats):
      start = time.perf_counter()
      run(*values)
      times[turn] = time.perf_counter() - start
    out[f"{number}/seconds"] = times

  graph = session.graph.as_graph_def()
  nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
  operations = {node.op for node in nodes} - {f.signature.name for f in graph.library.function}
  strange = [op for op in operations if op_def_registry.get(op) is None or "PyFunc" in op]
  assert not strange, f"needs operations that are not TensorFlow's own: {strange}"
  foreign = {"tf_twostage", "tensorflow_recommenders", "tf_keras"} & set(sys.modules)
  assert not foreign, f"needed more than TensorFlow: {foreign}"

  def described(tensors):
    return {
      name: f"{tf.dtypes.as_dtype(t.dtype).name} {tf.TensorShape(t.tensor_shape)}"
      for name, t in sorted(tensors.items())
    }

  report = {
    "native_seconds": native_seconds,
    "seconds": seconds,
    "operations": sorted(operations),
    "signatures": {
      name: {"inputs": described(s.inputs), "outputs": described(s.outputs)}
      for name, s in sorted(signatures.items())
      if s.inputs
    },
  }
  np.savez(answers, report=json.dumps(report), **out)


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
