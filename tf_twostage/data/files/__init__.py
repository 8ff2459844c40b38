"""Logs and tables in CSV, Parquet and TFRecord files: found, read, checked, and written."""

from tf_twostage.data.files.bad_rows import BadRows, BadRowsError
from tf_twostage.data.files.chunk import Chunk
from tf_twostage.data.files.columns import (
  NUMBER,
  CheckedColumns,
  IdSet,
  Rule,
  numbers,
  rule,
  text,
  times,
)
from tf_twostage.data.files.locate import Format, LogFiles, locate
from tf_twostage.data.files.reader import chunks, read
from tf_twostage.data.files.shards import convert

__all__ = [
  "NUMBER",
  "BadRows",
  "BadRowsError",
  "CheckedColumns",
  "Chunk",
  "Format",
  "IdSet",
  "LogFiles",
  "Rule",
  "chunks",
  "convert",
  "locate",
  "numbers",
  "read",
  "rule",
  "text",
  "times",
]
