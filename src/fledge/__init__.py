"""fledge raises a small language model: tokenizer, pretraining, fine-tuning, preference tuning, evaluation, export."""

__version__ = "0.1.0"
