"""The same results in fewer passes over memory: what transformers and PEFT compute one small operation at a time."""
