"""Check the words of docstrings, comments, messages and documents: ``python tests/language.py [FILE ...]``.

CONTRIBUTING.md has the rules. Two of them can be checked by a program: a sentence opens with its subject, and its actor
has a name. Documents are checked more strictly than code. Without arguments, all files that git knows are checked.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
#: A sentence that opens with one of these hides its subject.
_WORDS = "(?:What|Who|Whoever|Whose|That|Of)"
OPENERS = re.compile(rf"(?:^|(?<=[.!?:]\s)){_WORDS}\b(?! is\b.*\?)")
#: In documents, headings, list items, cells of tables and bold words open a sentence as well.
MARKDOWN_OPENERS = re.compile(rf"(?:^|^- |^#+ |[.:!?] |\| |\*\*){_WORDS} \w+", re.MULTILINE)
#: Words in the place of a process, thread, client or node.
ACTORS = re.compile(r"\b(?:nobody|somebody|anybody|whoever|whomever)\b", re.IGNORECASE)
_CODE = re.compile(r"``.+?``|`.+?`|\"[^\"]*\"|<[^<>]*>")


class Text(NamedTuple):
    """A docstring, a block of comments, a message or a paragraph, and the line that it begins in."""

    line: int
    words: str


def texts_of(path: Path) -> Iterator[Text]:
    """Yield the texts of a file in Python or Markdown."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from _paragraphs(source)
    else:
        yield from _comments(source)
        yield from _strings(ast.parse(source, str(path)))


def complaints_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each rule that a file breaks, with its line."""
    for text in texts_of(path):
        for complaint in complaints(text):
            yield text.line, complaint
    if path.suffix == ".md":
        yield from _strict_complaints(path.read_text(encoding="utf-8"))


def complaints(text: Text) -> Iterator[str]:
    """Yield each rule that a text breaks, as a sentence."""
    words = _CODE.sub("x", " ".join(text.words.split()))
    for found in OPENERS.finditer(words):
        yield f"opens with {found.group().strip()!r}: {words[found.start() : found.start() + 60]!r}"
    for found in ACTORS.finditer(words):
        yield f"has {found.group()!r} as an actor: {words[max(0, found.start() - 30) : found.end() + 30]!r}"


def _strict_complaints(source: str) -> Iterator[tuple[int, str]]:
    """Yield the rules that a document breaks, quotations and inline code included."""
    prose = source
    for outside in (r"^( *)```.*?^ *```$", r"<!--.*?-->", r"(?<=\])\([^)]*\)"):
        # The line breaks stay, so that lines keep their numbers.
        prose = re.sub(outside, lambda found: "\n" * found[0].count("\n"), prose, flags=re.DOTALL | re.MULTILINE)
    for pattern in (MARKDOWN_OPENERS, ACTORS):
        for found in pattern.finditer(prose):
            yield prose.count("\n", 0, found.start()) + 1, f"has {found.group().strip()!r}"


def _paragraphs(source: str) -> Iterator[Text]:
    block: list[str] = []
    begins, in_code = 1, False
    for number, line in enumerate([*source.splitlines(), ""], 1):
        if line.lstrip().startswith(("```", ":::")):
            in_code = not in_code and not line.lstrip().startswith(":::")
            line = ""
        elif in_code:
            continue
        if not line.strip() or line.startswith(("|", "- ", "#", "  ", "1", "2")):
            if block:
                yield Text(begins, " ".join(block))
            block = []
        if line.strip():
            begins = begins if block else number
            block.append(line.strip(" |#-").replace("|", ". "))


def _comments(source: str) -> Iterator[Text]:
    block: list[str] = []
    begins = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield Text(begins, " ".join(block))
                block = []
            begins = begins if block else token.start[0]
            last = token.start[0]
            block.append(token.string.lstrip("#: "))
    if block:
        yield Text(begins, " ".join(block))


def _strings(tree: ast.AST) -> Iterator[Text]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield Text(node.body[0].lineno, docstring)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for part in ast.walk(node.exc):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield Text(part.lineno, f"it says: {part.value}")


def main(arguments: list[str]) -> int:
    """Print each complaint with its place; return 1 where there is one."""
    if arguments:
        paths = list(map(Path, arguments))
    else:
        listed = subprocess.run(
            ["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        paths = [ROOT / name for name in listed.stdout.splitlines() if name != "CHANGELOG.md"]
    count = 0
    for path in paths:
        for line, complaint in complaints_of(path):
            count += 1
            print(f"{path}:{line}: {complaint}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
