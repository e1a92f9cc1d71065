"""Talking to a model that a run has raised, or to any other transformers folder with a chat template."""
