"""Answers from a finished run's weights: one question at a time, or a file of them."""
