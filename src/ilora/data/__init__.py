"""Rows, tasks and streams: from files to token ids."""
