"""Logs as people have them: which column is what, files of three formats, rows and their faults."""
