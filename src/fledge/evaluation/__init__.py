"""How models are measured: likelihood against a trigram, sampled answers, diversity and copying."""
