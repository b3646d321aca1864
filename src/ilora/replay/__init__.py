"""Replay: stored rows, and pseudo rows."""
