"""docs/serving.md against an export."""

import json
import pathlib
import re

import pytest
import tensorflow as tf

from tests.serving import small
from tf_twostage import serving
from tf_twostage.serving import deployment, local_server

DOCS = (pathlib.Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
CALLS = [
  (json.loads(body), url) for body, url in re.findall(r"curl -d '(.*?)' (\S+)", DOCS, re.DOTALL)
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("saved_models") / "synthetic"
  serving.save(small.recommender(), directory / "1")
  return directory


@pytest.fixture(scope="module")
def signatures(directory):
  return tf.saved_model.load(str(directory / "1")).signatures


def test_every_signature_is_called():
  assert {body["signature_name"] for body, _ in CALLS} == set(small.recommender().signatures())


@pytest.mark.parametrize(("body", "url"), CALLS)
def test_calls_over_rest_match_their_signatures(signatures, body, url):
  """As the server reads them: instances are stacked, inputs are taken as they are."""
  assert url == "http://localhost:8501/v1/models/synthetic:predict"
  run = signatures[body["signature_name"]]
  specs = run.structured_input_signature[1]
  inputs = body.get("inputs") or {
    name: [instance[name] for instance in body["instances"]] for name in body["instances"][0]
  }
  assert set(inputs) == set(specs)
  answer = run(**{name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()})
  assert {len(value) for value in answer.values()} == {len(inputs["user_id"])}


def test_the_python_program_runs(directory, capsys):
  (program,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
  with local_server.serve(directory) as address:
    exec(program.replace("localhost:8500", address).replace("timeout=0.5", "timeout=60"), {})
  printed = capsys.readouterr().out.splitlines()
  assert len(printed) == 3
  assert printed[-1].startswith("synthetic.recommend at localhost:")
  assert printed[-1].endswith("k must be at least 1, got 0")


def test_the_table_names_all_inputs_and_outputs(signatures):
  table = DOCS[DOCS.index("## Signatures") : DOCS.index("## REST")]
  features = {f.name for f in (*small.SCHEMA.user, *small.SCHEMA.context)}
  for name in small.recommender().signatures():
    (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}`"))
    run = signatures[name]
    named = {*run.structured_input_signature[1], *run.structured_outputs} - features
    assert all(f"`{column}`" in row for column in named)


def test_files_beside_the_versions_are_named():
  assert all(name in DOCS for name in deployment.FILES)
