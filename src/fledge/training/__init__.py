"""What the training stages share: start and finish, arguments, the fused head on a CPU, the data collator."""
