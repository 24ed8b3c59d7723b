"""docs/environment.md lists the variables that the code reads, and no others of ours."""

from __future__ import annotations

import re

import pytest

from tests.support.checkout import ROOT

# As os.environ["NAME"], os.environ.get("NAME"), os.environ.setdefault("NAME"), os.getenv("NAME").
READ = re.compile(r"""(?:environ(?:\.\w+)?|getenv)\s*[\[(]\s*["'](\w+)["']""")


def first_column(page: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)


@pytest.fixture(scope="module")
def listed() -> list[str]:
    return first_column((ROOT / "docs" / "environment.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source() -> str:
    folders = (ROOT / name for name in ("fastunit", "kernels", "bench"))
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def test_ours_are_those_of_the_source(listed, source):
    ours = {name for name in listed if name.startswith("FASTUNIT_")}
    assert ours == set(re.findall(r"\bFASTUNIT_[A-Z_]+", source)) != set()


def test_what_is_read_by_name_is_listed(listed, source):
    read = set(READ.findall(source))
    assert {"FASTUNIT_CACHE", "XDG_CACHE_HOME"} <= read <= set(listed)


def test_each_is_listed_once_and_on_no_other_page(listed):
    assert len(set(listed)) == len(listed)
    for page in set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "environment.md"}:
        assert not set(first_column(page.read_text(encoding="utf-8"))) & set(listed), page
