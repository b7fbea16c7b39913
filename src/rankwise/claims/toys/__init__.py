"""The small streams and models on which several claims are measured."""
