"""What a run will need, before any weight is read: bytes, operations, traffic, time."""
