"""Hooks of MkDocs (`mkdocs.yml`): links from the pages to files outside docs/ work on the site as well.

A linked text file becomes a page that shows it, an image is copied, a folder is a list of its files. A link whose text
names a function, class or constant of its target, as in [`resize_matrix`](../src/dvt/models/grids.py), leads to its
line.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from definitions import defined_at
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<!\\)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
IMAGES = (".png", ".svg", ".jpg")
NAMED = re.compile(r'<a href="[^"#]*files/(?P<path>[^"#]+\.py)\.html"><code>(?P<name>[A-Za-z_][\w.]*)</code></a>')
SHOWN = "files"  # folder of the site that shows files of the repository
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page or an image for every file of the repository that a page links to."""
    root = Path(config.config_file_path).parent
    linked = set()
    for page in files.documentation_pages():
        linked |= {target for _, target in outside_links(page.content_string, page.src_uri, root)}
    for path in sorted(linked):
        inclusion = InclusionLevel.NOT_IN_NAV
        content = {"abs_src_path": str(path)} if path.suffix in IMAGES else {"content": shown(path, root)}
        files.append(File.generated(config, site_uri(path, root), inclusion=inclusion, **content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that leave docs/ towards what `on_files` has added."""
    root = Path(config.config_file_path).parent
    here = posixpath.dirname(page.file.src_uri)
    for match, path in outside_links(markdown, page.file.src_uri, root):
        uri = quote(posixpath.relpath(site_uri(path, root), here or "."))
        markdown = markdown.replace(match, f"[{match[1 : match.rindex('](')]}]({uri})")
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links that name a definition to its line; only now, because MkDocs cannot check anchors of code lines."""
    root = Path(config.config_file_path).parent

    def to_line(match: re.Match[str]) -> str:
        line = defined_at(root / match["path"], match["name"])
        return match[0].replace('.html"', f'.html#__codelineno-0-{line}"', 1) if line else match[0]

    return NAMED.sub(to_line, html)


def outside_links(markdown: str, src_uri: str, root: Path) -> Iterator[tuple[str, Path]]:
    """(whole link, file or folder outside docs/) of every such link of a page that leads somewhere."""
    docs = root / "docs"
    for match in LINK.finditer(markdown):
        target = match["target"].partition("#")[0]
        if not target or "://" in target or target.startswith("/"):
            continue
        path = Path(posixpath.normpath(docs / posixpath.dirname(src_uri) / target))
        if path.exists() and root in path.parents and docs not in path.parents:
            yield match[0], path


def site_uri(path: Path, root: Path) -> str:
    """Where the site has a file of the repository, relative to its root."""
    return f"{SHOWN}/{path.relative_to(root)}" + ("" if path.suffix in IMAGES else ".md")


def shown(path: Path, root: Path) -> str:
    """The page of a text file or a folder."""
    title = f"---\nsearch: {{exclude: true}}\n---\n\n# {path.relative_to(root)}\n\n"
    if path.is_dir():
        names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir() if entry.name[0] not in "._")
        return title + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = path.read_text(encoding="utf-8")
    fence = "`" * (3 + max((len(run) for run in re.findall("`{3,}", text)), default=0))
    return f'{title}{fence}{{.{LANGUAGES.get(path.suffix, "text")} linenums="1"}}\n{text}{fence}\n'
