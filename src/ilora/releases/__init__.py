"""The line of releases of a run: promote a finished phase, go back to an earlier one, the table of all of them."""
