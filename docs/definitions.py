"""Where a Python file defines a name, without running it: for links of the site (site_hooks.py) and tests of pages."""

import ast
from pathlib import Path


def defined_at(path: Path, name: str) -> int | None:
    """Line on which a Python file defines `name`, a function, class, constant, field or Class.method; None if it does
    not."""
    body, line = ast.parse(path.read_text(encoding="utf-8")).body, None
    for part in name.split("."):
        found = [node for node in body if part in _names(node)]
        if not found:
            return None
        line, body = found[0].lineno, getattr(found[0], "body", [])
    return line


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
