"""Models on their way to the hub, never in the way of training: an outbox beside the run, and who empties it."""
