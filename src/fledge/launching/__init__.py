"""Run the stages of a recipe folder, each in a process of its own."""
