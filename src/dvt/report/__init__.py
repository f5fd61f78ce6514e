"""The report of an evaluation: its results, and the page, figures and words made of them. No MindSpore.

`results` says what there is; `page` writes the files, its `tables` are HTML, `figures` are PNG.
"""

from dvt.report.figures import FIGURES
from dvt.report.page import NUMBERS, PAGE, write_report
from dvt.report.results import Results
from dvt.report.words import headline, summary

__all__ = ["FIGURES", "NUMBERS", "PAGE", "Results", "headline", "summary", "write_report"]
