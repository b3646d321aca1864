"""Judging answers: parsers, metrics, the score matrix and what follows from it."""
