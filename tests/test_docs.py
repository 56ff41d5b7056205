"""Citations between the code and the pages in `docs/`, and links between pages."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]

NUMBERS = r"(\d+[a-z]?(?:(?:, | and | to )\d+[a-z]?)*)"
CITED = {
    "model": re.compile(rf"\b[Ss]ections? {NUMBERS}"),
    "rewrites": re.compile(rf"\b[Rr]ewrites? {NUMBERS}"),
    "reliability": re.compile(r"\b[Bb]ar (R\d+)"),
}
DEFINED = {
    "model": re.compile(r"^##+ (\d+[a-z]?)\. ", re.MULTILINE),
    "rewrites": re.compile(r"^## Rewrite (\d+):", re.MULTILINE),
    "reliability": re.compile(r"^\| (R\d+) \|", re.MULTILINE),
}
"""Page -> pattern of its citations in the code (`CITED`) and of the cited headings or rows on it (`DEFINED`)."""

SOURCES = [
    path for folder in ("pgat_fast", "kernels", "bench", "examples", "tests") for path in (ROOT / folder).rglob("*.py")
]


@cache
def defined(page: str) -> set[str]:
    return set(DEFINED[page].findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")))


def citations(text: str, page: str) -> Iterator[str]:
    for cited in CITED[page].findall(text):
        yield from re.split(", | and | to ", cited)


def test_items_cited_in_the_code_exist_on_pages() -> None:
    missing = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8").replace("Vaswani et al. 2017, section", "")
        for page in CITED:
            missing += [f"{path}: {page} {item}" for item in citations(text, page) if item not in defined(page)]
    assert missing == []


def test_citations_are_found_in_every_form() -> None:
    text = "Sections 1 to 6, 7 and 8b. Section 13: (rewrites 3, 5, 6 and 8). Bar R10."
    assert list(citations(text, "model")) == ["1", "6", "7", "8b", "13"]
    assert list(citations(text, "rewrites")) == ["3", "5", "6", "8"]
    assert list(citations(text, "reliability")) == ["R10"]


def test_tests_and_modules_named_on_pages_exist() -> None:
    tests = re.findall(r"`([\w/]+/test_\w+\.py)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(tests) > 10
    assert [name for name in tests if not (ROOT / "tests" / "pgat_fast" / name).exists()] == []
    modules = re.findall(r"`pgat_kernels\.([\w.]+)`", (ROOT / "docs" / "rewrites.md").read_text(encoding="utf-8"))
    assert len(modules) >= 8
    assert [
        name for name in modules if not (ROOT / "kernels" / "pgat_kernels" / f"{name.replace('.', '/')}.py").exists()
    ] == []


def test_links_between_pages_have_existing_targets() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")) and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []
