"""What a run measured: written, read, summarised."""
