"""The gate: whether a finished phase may become a release, by rules, with the noise of the test rows."""
