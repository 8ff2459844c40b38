"""Logs in memory -> native shards with a CSV and a Parquet view of the same rows, and back."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tf_twostage.data.files import reader, shards
from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.files.columns import IdSet
from tf_twostage.data.files.locate import locate
from tf_twostage.data.log_schema import FeatureColumn, LogSchema
from tf_twostage.data.rows import LogRows


def write(log, directory, schema, num_shards=4):
  columns = {
    "user_id": np.array(schema.user_id.vocabulary, object)[log.user_index],
    "item_id": np.array(schema.item_id.vocabulary, object)[log.action],
    "propensity": log.propensity,
    "reward": log.reward,
  }
  columns |= {} if log.position is None else {"position": log.position}
  table = pa.table({**columns, **log.context})
  with shards.new_log(directory) as aside:
    list(shards.write([table], aside, rows=len(log), num_shards=num_shards))
    table.to_pandas().to_csv(aside / "log.csv", index=False)
    table.to_pandas().to_parquet(aside / "log.parquet", index=False)


def read(path, schema):
  context = tuple(FeatureColumn(feature.name, "numeric") for feature in schema.context)
  columns = LogSchema(context_features=context)
  known = {
    f"{side}_id": IdSet(
      pa.array(feature.vocabulary, pa.string()),
      f"must name a known {side} ({feature.name!r} of the schema)",
      f"add them to the {side}s' table or drop these rows",
    )
    for side, feature in (("user", schema.user_id), ("item", schema.item_id))
  }
  bad_rows = BadRows()
  parts = list(reader.read(locate(path), columns, bad_rows, known=known))
  bad_rows.settle("fail")
  table = pa.concat_tables([part.table for part in parts])
  index = {
    name: pc.index_in(table[name], value_set=ids.ids).to_numpy().astype(np.int32)
    for name, ids in known.items()
  }
  return LogRows(
    user_index=index["user_id"],
    action=index["item_id"],
    propensity=table["propensity"].to_numpy(),
    reward=table["reward"].to_numpy(),
    context={feature.name: table[feature.name].to_numpy() for feature in schema.context},
    position=table["position"].to_numpy() if "position" in table.column_names else None,
  )
