"""The report of an evaluation: its results, and the page, figures and words made of them. No MindSpore.

`results` says what there is; `page` writes the files, its `tables` are HTML, its figure of `figures` is a PNG.
"""

from dvt.report.page import NUMBERS, PAGE, write_report
from dvt.report.results import Results
from dvt.report.words import headline, summary

__all__ = ["NUMBERS", "PAGE", "Results", "headline", "summary", "write_report"]
