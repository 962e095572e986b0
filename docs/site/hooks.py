"""The site shows files of the repository from where they are: method cards, log, changes, and whatever a page links to.

Links are written as they hold in the repository; here they come to point to the same thing on the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ELSEWHERE = {ROOT / f"{name.upper()}.md": f"{name}.md" for name in ("log", "changelog", "contributing")}
ELSEWHERE |= {path: f"methods/{path.name}" for path in (ROOT / "src" / "morphogen" / "methods" / "cards").glob("*.md")}
LINK = re.compile(r"(\]\()([^)\s#:]+)")


def place_on_site(path: Path) -> str:
    """Where a file of the repository is on the site."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    return (path.relative_to(DOCS) if path.is_relative_to(DOCS) else "files" / path.relative_to(ROOT)).as_posix()


def linked(text: str, source: Path) -> set[Path]:
    """The files of the repository that a page links to."""
    targets = ((source.parent / match[2]).resolve() for match in LINK.finditer(text))
    return {target for target in targets if target.is_file() and target.is_relative_to(ROOT)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/, and the files that pages link to."""
    for path, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for page in list(files.documentation_pages()):
        source = Path(page.abs_src_path or "")
        for target in linked(page.content_string, source):
            if files.get_file_from_path(place_on_site(target)) is None:
                place = place_on_site(target)
                inclusion = InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, place, abs_src_path=str(target), inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site."""
    source = Path(page.file.abs_src_path or "")
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = (source.parent / match[2]).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            return match[0]
        return match[1] + posixpath.relpath(place_on_site(target), here or ".")

    return LINK.sub(moved, markdown)
