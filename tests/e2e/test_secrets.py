"""A token in the environment is in no byte that a whole chain writes or prints."""

from .conftest import TOKEN
from .workspace import Workspace


def test_a_token_is_found_nowhere(chain: Workspace) -> None:
    files = [path for path in chain.folder.rglob("*") if path.is_file()]
    assert {"output.txt", "report.html", "recipe.json", "model.safetensors", "optimizer.pt"} <= {f.name for f in files}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
