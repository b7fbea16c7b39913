"""Adapters taken apart and put together: merging into the base, PEFT checkpoints in and out."""
