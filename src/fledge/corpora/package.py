"""Fetching a pinned registry package once, and proving that it is the pinned one."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


# 85 MB takes seconds on a good line; ten minutes also lets a slow one through.
TIMEOUT_SECONDS = 600


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/fledge, or ~/.cache/fledge where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fledge"


def verify_sha256(path: Path, sha256: str) -> None:
    """Raises ValueError unless `path` is a file whose SHA-256 (hex) is `sha256`."""
    if not path.is_file():
        raise ValueError(f"no such file: {path}; name the downloaded package file")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"wrong checksum for {path}: expected {sha256}, got {found}; delete it and try again")


def fetch_npm(name: str, version: str, sha256: str, cache_dir: Path | None = None) -> Path:
    """The tarball of an npm package, from `cache_dir` or else by `npm pack` (which runs none of its scripts).

    Returns the path of a file whose SHA-256 is `sha256`. Raises ValueError, saying what to do, if npm is missing,
    fails or takes longer than TIMEOUT_SECONDS, or if the checksum is wrong.
    """
    cache_dir = cache_dir or default_cache_dir()
    cache_dir.mkdir(parents=True, exist_ok=True)
    tarball = cache_dir / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not tarball.exists():
        _npm_pack(f"{name}@{version}", tarball)
    verify_sha256(tarball, sha256)
    return tarball


def _npm_pack(spec: str, tarball: Path) -> None:
    advice = f"or run `npm pack {spec}` on another machine and pass --from_file FILE"
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"npm is not on PATH: install Node.js with npm, {advice}")
    # A private folder, then a rename: a killed download never lies under the name that is taken for whole.
    with tempfile.TemporaryDirectory(dir=tarball.parent) as scratch:
        # Not --silent: that mutes the error message too.
        command = [npm, "pack", spec, "--pack-destination", scratch, "--loglevel", "error"]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"npm did not fetch {spec} within {TIMEOUT_SECONDS} s: check the network and try again, {advice}"
            ) from None
        packed = list(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or len(packed) != 1:
            raise ValueError(
                f"npm could not fetch {spec} ({_reason(done)}): check the network and try again, {advice}"
            )
        packed[0].replace(tarball)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    # npm names the error first, and ends with a stack trace and a pointer to its log file.
    return done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
