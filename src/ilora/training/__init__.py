"""The loop that owns the optimizer step, and what it needs to stop and go on."""
