"""results.json: its form, how it is written and read, and the measures in it."""
