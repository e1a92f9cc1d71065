"""One file a stage, read top to bottom; `main(recipe)` runs it. Stages meet only on disk."""
