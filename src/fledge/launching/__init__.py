"""Run the stages of a recipe folder, each in a process of its own."""

EXIT_CODE_FILE = "FLEDGE_EXIT_CODE_FILE"
"""Environment variable: where a stage leaves its exit code, which accelerate's launcher turns into 1."""
