"""The files of a report: `report.html` (self-contained), figures as PNG, `results.json`."""

from contextlib import ExitStack
from pathlib import Path

from dvt.errors import ConfigError, work_begun
from dvt.report.figures import DARK, LIGHT, draw_all
from dvt.report.page import page
from dvt.report.results import Results
from dvt.safe_files import explained, replacing

PAGE = "report.html"
NUMBERS = "results.json"
FIGURES = (
    *("accuracy_gmacs.png", "accuracy_speed.png", "reliability.png"),
    *("exit_share.png", "attention.png", "examples.png", "extremes.png"),  # of earlier versions
)


@work_begun()
def write_report(results: Results, folder: Path) -> Path:
    """Writes `results.json`, the figures and `report.html` into `folder` and returns the path of the page.

    No file takes its place before all are written, and the page comes last; figures that only an earlier report has are
    removed. Raises ConfigError for a folder that cannot be written.
    """
    light, dark = draw_all(results, LIGHT), draw_all(results, DARK)
    html = page(results, {name: (light[name], dark[name]) for name in light})
    files = {PAGE: html.encode(), NUMBERS: results.to_json().encode(), **light}

    folder = Path(folder)
    with explained(folder, ConfigError):
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as moved_at_the_end:  # in reverse order
            for name, content in files.items():
                moved_at_the_end.enter_context(replacing(folder / name)).write_bytes(content)
        for name in set(FIGURES) - set(files):
            (folder / name).unlink(missing_ok=True)
    return folder / PAGE
