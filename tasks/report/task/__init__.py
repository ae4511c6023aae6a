"""Reporting: what an audit wrote, as one page for people and one table for the terminal."""

from tasks.report.task.comparison import (
    Comparison,
    accept,
    audits_named,
    baseline_of,
    compare,
    differences_table,
    latest,
)
from tasks.report.task.diagnosis import Searches, diagnose
from tasks.report.task.page import Localized, Written, page_path, training_chart, write_report
from tasks.report.task.record import record_of, rows_of
from tasks.report.task.results import write_results

__all__ = [
    "Comparison",
    "Localized",
    "Searches",
    "Written",
    "accept",
    "audits_named",
    "baseline_of",
    "compare",
    "diagnose",
    "differences_table",
    "latest",
    "page_path",
    "record_of",
    "rows_of",
    "training_chart",
    "write_report",
    "write_results",
]
