"""Logs and tables in CSV, Parquet and TFRecord files: found, read, checked, and written."""
