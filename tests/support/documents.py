"""The documents of the repository: their text, snippets, headings, links and code."""

import os
import re
from pathlib import Path
from typing import Final

__all__ = ["DOCUMENTS", "ROOT", "anchors", "block", "blocks", "code", "links", "section"]

ROOT: Final = Path(__file__).parent.parent.parent

_OTHERS: Final = ("node_modules", "fixtures", ".venv", ".pytest_cache")


def _documents() -> list[Path]:
    found = []
    for directory, below, names in os.walk(ROOT):
        below[:] = [name for name in below if name not in _OTHERS]  # they hold many files, which others write meanwhile
        found += [Path(directory, name) for name in names if name.endswith(".md")]
    return sorted(found)


DOCUMENTS: Final = {str(path.relative_to(ROOT)): path.read_text() for path in _documents()}
"""The text of each document by its path in the repository."""

_BLOCK: Final = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str) -> list[str]:
    """Return the code blocks of a document in a language, without their indentation."""
    return [
        re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        for indent, named, text in _BLOCK.findall(DOCUMENTS[document])
        if named == language
    ]


def block(document: str, language: str, words: str = "") -> str:
    """Return the one code block of a document in a language that contains ``words``."""
    (found,) = [text for text in blocks(document, language) if words in text]
    return found


def section(document: str, heading: str) -> str:
    """Return the text below a heading, up to the next heading of the same level or a higher one."""
    text = _BLOCK.sub(lambda match: match[0].replace("\n#", "\n\0#"), DOCUMENTS[document])
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^(?!\1#)#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{document} has no heading {heading!r}"
    return found[2].replace("\0", "")


def code(document: str) -> list[str]:
    """Return the text of code spans, and the lines of code blocks."""
    text = DOCUMENTS[document]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", _BLOCK.sub("", text))]
    return spans + [line.strip() for _, _, block in _BLOCK.findall(text) for line in block.splitlines()]


def links(document: str) -> list[str]:
    """Return the targets of the links of a document."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", _BLOCK.sub("", DOCUMENTS[document])))


def anchors(document: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", _BLOCK.sub("", DOCUMENTS[document]), re.MULTILINE)
    made: list[str] = []
    for title in titles:
        plain = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = made.count(plain)
        made.append(plain)
        if count:
            made.append(f"{plain}-{count}")
    return set(made)
