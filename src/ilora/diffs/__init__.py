"""What changed between two phases or runs, row by row, from their prediction files."""
