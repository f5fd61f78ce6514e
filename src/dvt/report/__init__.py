"""The report of an evaluation: page, figures, tables and numbers. No MindSpore; a reader starts at `write`."""

from dvt.report.pictures import AttentionExample, ClassExtremes, Example
from dvt.report.write import FIGURES, NUMBERS, PAGE, headline, summary, write_report

__all__ = [
    "FIGURES",
    "NUMBERS",
    "PAGE",
    "AttentionExample",
    "ClassExtremes",
    "Example",
    "headline",
    "summary",
    "write_report",
]
