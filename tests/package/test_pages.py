"""Files and modules that the pages name exist, and so do the files that they link to."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

FOLDERS = ("fastunit", "kernels", "configs", "tests", "bench", "docs", r"\.ci", r"\.github")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*[\w/](?![\w*<{{])")
MODULE = re.compile(r"(?<![\w./-])(?:fastunit|bench)(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w./*-])\w+\.py\b")
LINK = re.compile(r"\]\(([^)\s:#]+)(?:#[^)]*)?\)")
WRITTEN = "bench/results"  # by benchmarks


def _tracked() -> list[Path]:
    """Return the files of the repository; all of a tree that is none."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return [path for path in ROOT.rglob("*") if path.is_file()]
    return [ROOT / line for line in listed.stdout.splitlines()]


TRACKED = _tracked()
PAGES = sorted(
    path
    for path in TRACKED
    if path.suffix == ".md" and path.is_file() and path.name != "CHANGELOG.md"  # names what is gone
)


def _names(module: str) -> bool:
    """Return whether a dotted name is a module, or a name that stands in one."""
    place, (*parts,) = ROOT, module.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if parts and (place / f"{parts[0]}.py").is_file():
        place /= f"{parts.pop(0)}.py"
    else:
        place /= "__init__.py"
    if not parts:
        return True
    return place.is_file() and re.search(rf"\b{parts[0]}\b", place.read_text()) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = {path.name for path in TRACKED}
    paths = {path for path in PATH.findall(text) if not path.startswith(WRITTEN)}
    missing = {path for path in paths if not (ROOT / path).exists()}
    missing |= {name for name in MODULE.findall(text) if not _names(name)}
    missing |= {name for name in FILE.findall(text) if name not in names}
    missing |= {link for link in LINK.findall(text) if not (page.parent / link).exists()}
    assert not missing, f"{page.relative_to(ROOT)} names what is not there: {sorted(missing)}"
