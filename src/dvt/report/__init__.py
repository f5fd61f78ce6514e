"""The report of an evaluation: its results, and the page, figures and words made of them. No MindSpore.

`results` says what there is, `write` writes the files; `page` and its `tables` are HTML, `figures` PNG.
"""

from dvt.report.results import Results
from dvt.report.words import headline, summary
from dvt.report.write import FIGURES, NUMBERS, PAGE, write_report

__all__ = ["FIGURES", "NUMBERS", "PAGE", "Results", "headline", "summary", "write_report"]
