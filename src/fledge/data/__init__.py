"""Rows for training: read, tokenised, masked, packed and frozen before any process group exists."""
