"""What an export holds, and that it needs nothing but TensorFlow."""

import os
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from tests import commands
from tests.serving import small
from tf_twostage import serving
from tf_twostage.errors import InputError, RunError
from tf_twostage.serving import check

SIGNATURES = {"recommend", "retrieve", "rank", "sample"}


def test_an_export_is_a_version_with_what_a_server_needs_beside_it(exported):
  assert exported.name == "1"
  assert {path.name for path in exported.parent.iterdir()} == {
    "1",
    "models.config",
    "batching_parameters.txt",
    "docker-compose.yml",
  }
  assert {path.name for path in (exported / "assets.extra").iterdir()} == {
    "tf_serving_warmup_requests",
    "about.json",
    "digests.json",
  }
  assert (exported / "assets.extra" / "about.json").read_bytes() == b"{}"


def test_every_operation_is_known_where_only_tensorflow_is_imported(exported, replayed):
  model = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
  (graph,) = (meta.graph_def for meta in model.meta_graphs)
  functions = {f.signature.name for f in graph.library.function}
  nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
  used = {node.op for node in nodes} - functions
  assert {"MatMul", "TopKV2", "Assert", "LookupTableFindV2"} <= used
  assert used <= set(replayed["operations"])  # which that process looked up
  assert not [op for op in used if "Py" in op]


@pytest.mark.parametrize("op", ["EagerPyFunc", "NoSuchOp"])
def test_other_operations_are_refused(op, tmp_path):
  model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
  meta = model.meta_graphs.add()
  meta.meta_info_def.tags.append("serve")
  node = meta.graph_def.node.add(name="x", op=op)
  if op == "EagerPyFunc":
    for name in ("Tin", "Tout"):
      node.attr[name].list.SetInParent()
    node.attr["token"].s = b"a"
  (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
  with pytest.raises(RunError, match=op):
    check.replay(tmp_path, [])


def test_the_loader_of_the_server_and_a_session_answer_as_this_process(
  exported, replayed, monkeypatch
):
  monkeypatch.setattr(check, "replay", lambda *_, repeats: replayed)
  report, same = check.check(exported, repeats=2)
  assert same
  for words in (
    str(exported),
    "s by the C++ loader",
    *SIGNATURES,
    "output  propensity           float32 (None,)",
    "p50      p99",
    "16 calls answered as in the exporting process",
  ):
    assert words in report


def test_a_check_says_what_is_wrong(exported, replayed, monkeypatch):
  first, *rest = replayed["answers"]
  other = {**replayed, "answers": [{**first, "score": first["score"] + 1}, *rest]}
  monkeypatch.setattr(check, "replay", lambda *_, repeats: other)
  report, same = check.check(exported, repeats=2)
  assert not same
  assert "DIFFERENT from the exporting process: call 0 (recommend)" in report

  def fails(*_, repeats):
    raise RunError("no such operation")

  monkeypatch.setattr(check, "replay", fails)
  assert check.check(exported, repeats=2) == ("no such operation", False)


def test_other_answers_are_noticed(exported):
  """The calls of another model, on this one."""
  others = check.record(small.recommender(seed=5), small.requests())
  own = check.read(exported)
  assert not check.differences(own, [call.answer for call in own])
  different = check.differences(own, [call.answer for call in others])
  assert [text.split("(")[1].rstrip(")") for text in different[:2]] == ["recommend", "retrieve"]


LIST = {
  "item_id": np.array([["a", "b", "c"]]),
  "title": np.array([["A", "B", "C"]]),
  "score": np.array([[3.0, 2.0, 1.0]]),
}


@pytest.mark.parametrize(
  ("changes", "same"),
  [
    ({}, True),
    ({"item_id": np.array([[b"a", b"b", b"c"]])}, True),
    ({"score": np.array([[3.0, 2.00001, 1.0]])}, True),
    ({"score": np.array([[3.0, 2.01, 1.0]])}, False),
    # A place may have gone to another item, with another score; two may not.
    ({"item_id": np.array([["a", "x", "c"]]), "score": np.array([[3.0, 2.5, 1.0]])}, True),
    ({"item_id": np.array([["a", "x", "c"]]), "score": np.array([[3.5, 2.5, 1.0]])}, False),
    ({"item_id": np.array([["b", "a", "c"]])}, False),
    ({"title": np.array([["B", "A", "C"]])}, False),
    ({"item_id": np.array([["a", "b"]])}, False),
    ({"more": np.zeros(1)}, False),
  ],
)
def test_answers_agree_but_for_rounding(changes, same):
  assert check.same({**LIST, **changes}, LIST) is same


def test_a_version_that_answers_otherwise_does_not_appear(tmp_path, monkeypatch):
  monkeypatch.setattr(check, "replay", lambda *_: {"answers": [{}] * 8})
  with pytest.raises(RunError, match=r"does not repeat .* answers to call 0 \(recommend\)"):
    serving.export(small.recommender(), tmp_path, small.requests(1))
  assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_no_version(tmp_path, monkeypatch):
  def fails(*args, **kwargs):
    raise OSError("disk full")

  monkeypatch.setattr(tf.saved_model, "save", fails)
  with pytest.raises(OSError, match="disk full"):
    serving.export(small.recommender(), tmp_path, small.requests(1))
  assert not list(tmp_path.glob("[0-9]*"))


def export_one_signature(directory, killed):
  small.skip_replay()
  every = serving.ServableRecommender.signatures
  serving.ServableRecommender.signatures = lambda self: {"recommend": every(self)["recommend"]}
  if killed:
    check.replay = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
  serving.export(small.recommender(), directory, small.requests(1))


def test_a_killed_export_leaves_no_version_and_the_next_one_cleans_up(tmp_path):
  for killed, result, left in ((True, -signal.SIGKILL, ".1.partial"), (False, 0, "1")):
    code, _, said = commands.fork(export_one_signature, tmp_path, killed).end()
    assert code == result, said
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [left]
  request = {**small.requests(), "k": np.array([5], np.int32)}
  answer = small.ask(tf.saved_model.load(str(tmp_path / "1")).signatures["recommend"], **request)
  expected = small.ask(small.recommender().recommend, **request)
  np.testing.assert_array_equal(answer["item_id"], expected["item_id"])


def test_what_does_not_load_says_so(tmp_path):
  (tmp_path / "1").mkdir()
  (tmp_path / "1" / "saved_model.pb").write_bytes(b"damaged")
  with pytest.raises(
    RunError, match="does not answer in a fresh process: RuntimeError: C"
  ) as error:
    check.replay(tmp_path / "1", [])
  assert "Traceback" not in str(error.value)


def test_damaged_warm_up_requests_are_named(exported, tmp_path):
  shutil.copytree(exported, tmp_path / "1")
  file = tmp_path / "1" / check.WARM_UP
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(InputError, match=f"{check.WARM_UP}: damaged; export again"):
    check.read(tmp_path / "1")


def test_warm_up_requests_are_those_of_the_server(exported, signatures):
  path = str(exported / "assets.extra" / "tf_serving_warmup_requests")
  records = [
    prediction_log_pb2.PredictionLog.FromString(record)
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator()
  ]
  assert len(records) == 4 * (3 + 1)  # each user alone, then all
  assert {record.WhichOneof("log_type") for record in records} == {"predict_log"}
  specs = [record.predict_log.request.model_spec for record in records]
  assert {spec.name for spec in specs} == {"movies"}
  assert {spec.signature_name for spec in specs} == SIGNATURES
  for call in check.read(exported):
    answer = small.ask(signatures[call.signature], **call.inputs)
    assert set(answer) == set(call.answer)


def test_files_for_the_server_name_the_model(exported):
  config = model_server_config_pb2.ModelServerConfig()
  text_format.Parse((exported.parent / "models.config").read_text(), config)
  (model,) = config.model_config_list.config
  assert (model.name, model.base_path) == ("movies", "/models/movies")
  compose = (exported.parent / "docker-compose.yml").read_text()
  assert "/models/movies:ro" in compose
  assert "@" not in compose


def test_an_export_keeps_edited_files_and_does_not_need_the_extra(tmp_path, monkeypatch, caplog):
  small.skip_replay(monkeypatch.setattr)
  monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
  (tmp_path / "models.config").write_text("mine")
  version = serving.export(small.recommender(), tmp_path, small.requests(1))
  assert (tmp_path / "models.config").read_text() == "mine"
  assert (tmp_path / "batching_parameters.txt").exists()
  assert "pip install 'tf_twostage[serving]'" in caplog.text
  assert [p.name for p in (version / "assets.extra").iterdir()] == ["digests.json"]


def test_templates_are_part_of_the_package():
  setup = (pathlib.Path(serving.__file__).parents[2] / "setup.py").read_text()
  assert '"tf_twostage.serving": ["templates/*"]' in setup
