"""The real launcher, real processes, real text: what a user does, done by a test."""
