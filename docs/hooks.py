"""MkDocs hooks: the generated reference, and the pages at the repository's top, become pages of the site."""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
sys.path[:0] = [str(DOCS), str(REPOSITORY)]

import notebook_page  # noqa: E402 — it lies beside this file, which MkDocs does not import as part of a package
from reference import PAGES  # noqa: E402 — so does this

# files outside docs/ → their places in the site
TAKEN = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "LICENSE": "licence.md",
    "benchmarks/results/README.md": "speed.md",
    "benchmarks/results/growth.png": "growth.png",
    "benchmarks/results/cuda/README.md": "speed-on-cuda.md",
}
LINK = re.compile(r"""(\]\(|<img src=")([^)"#:]+)""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and the files outside `docs/`, to those of the folder."""
    for name, page in {**PAGES, "notebook.md": notebook_page.page}.items():
        files.append(File.generated(config, name, content=page()))
    for name, target in TAKEN.items():
        path = REPOSITORY / name
        if target.endswith(".md"):
            files.append(File.generated(config, target, content=_page(name, path.read_text(encoding="utf-8"))))
        else:
            files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def _page(name: str, text: str) -> str:
    """The text of a file outside `docs/`, with its links as they are in the site."""
    if name == "LICENSE":
        return f"# Licence\n\n```text\n{text}```\n"
    return LINK.sub(
        lambda link: link[1] + _place(posixpath.normpath(posixpath.join(posixpath.dirname(name), link[2]))), text
    )


def _place(path: str) -> str:
    """Where a file of the repository is in the site."""
    return TAKEN.get(path, path.removeprefix("docs/"))
