"""What a run leaves behind, written by every stage and read back by the report."""
