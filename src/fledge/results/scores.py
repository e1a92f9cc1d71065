"""The scores of an evaluation: what each is called, what it means, how it is written."""

from fledge.results.numbers import fixed, percent, plain


SCORES = {
    "bits_per_char": ("Bits per character", "on held-out text; lower is better", fixed),
    "bits_per_byte": ("Bits per byte", "the same, by the bytes of the text in UTF-8", fixed),
    "loss": ("Loss", "nats a token, on held-out text; comparable with the same tokenizer only", fixed),
    "perplexity": ("Perplexity", "the exponential of the loss", fixed),
    "answer_bits_per_char": ("Bits, answers", "per character, on held-out conversations; lower is better", fixed),
    "form_perfect": ("Perfect poems", "the answer is exactly the form asked for, and ends by itself", percent),
    "choice_accuracy": (
        "Multiple choice",
        "the right answer is the likeliest per byte among wrong ones of the same topic",
        percent,
    ),
    "choice_chance": ("Multiple choice, by chance", "what guessing reaches", percent),
    "stop_rate": ("Stops", "the answer ends with a stop token", percent),
    "mean_length": ("Length", "characters or words of an answer, on average", fixed),
    "distinct_1": ("Distinct-1", "different characters or words, of all", percent),
    "distinct_2": ("Distinct-2", "different pairs of neighbouring characters or words, of all pairs", percent),
    "seq_rep_4": ("Repeated 4-grams", "runs of four characters or words that stand in the answer before", percent),
    "loop_rate": ("Loops", "the answer ends with a phrase three times in a row", percent),
    "copied_line_rate": ("Copied lines", "lines that stand verbatim in the training text", percent),
    "preference_accuracy": (
        "Preference accuracy",
        "held-out pairs in which the better answer gained on the other since the reference model",
        percent,
    ),
    "preference_margin": ("Preference margin", "nats by which it gained, on average", fixed),
    "answers": ("Answers", "how many were generated and measured", plain),
    "lines_compared": ("Lines compared", "how many were looked up in the training text", plain),
}

PARTS = {
    "form_perfect_by_form": ("Perfect, by form", percent),
    "choice_accuracy_by_form": ("Multiple choice, by what is given", percent),
    "bits_per_byte_by_source": ("Bits per byte, by source", fixed),
}
"""Scores with one value for each part of what was measured."""
