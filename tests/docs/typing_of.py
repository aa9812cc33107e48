"""The Python of all pages as packages that a type checker can read."""

import re
from collections.abc import Iterable
from pathlib import Path

from .markdown import blocks_of
from .pages import name_of


def write_packages(pages: Iterable[Path], directory: Path) -> Path:
    """Write ``directory/snippets/PAGE/N/*.py``; returns ``directory/snippets``.

    The blocks that share a namespace are one module. A file of which a page shows another version begins another
    package, which has the page's other files as well.
    """
    root = directory / "snippets"
    for page in pages:
        _write(page, root)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        (folder / "__init__.py").touch()
    return root


def _write(page: Path, root: Path) -> None:
    name = re.sub(r"\W", "_", name_of(page))
    versions: list[dict[str, str]] = [{}]
    together = ""
    for block in blocks_of(page.read_text()):
        if block.language != "python" or block.marks.keys() & {"from", "not run", "run by"}:
            continue
        if block.title is None:
            # As many lines as the page has before it, so that the checker's line numbers are the page's.
            together += "\n" * (block.line - 1 - together.count("\n")) + block.code
            continue
        if block.title in versions[-1]:
            versions.append(dict(versions[-1]))
        versions[-1][block.title] = "\n" * (block.line - 1) + block.code
    if together:
        # They may import what the page's files have come to.
        versions.append({**versions[-1], "blocks.py": together})
    for number, files in enumerate(versions):
        if not files:
            continue
        folder = root / name / f"v{number}"
        folder.mkdir(parents=True)
        stems = "|".join(re.escape(Path(title).stem) for title in files)
        for title, code in files.items():
            package = f"from {root.name}.{name}.v{number}."
            (folder / title).write_text(re.sub(rf"^from (?=(?:{stems}) import )", package, code, flags=re.MULTILINE))
