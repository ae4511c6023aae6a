"""Reporting: what an audit wrote, as one page for people and one table for the terminal."""

from tasks.report.charts import Chart, drawn
from tasks.report.compare import ALPHA, MARGIN
from tasks.report.markdown import put_between
from tasks.report.sheet import grid
from tasks.report.standing import claims, standings
from tasks.report.task.comparison import (
    accept,
    audits_named,
    baseline_of,
    brought_back,
    compare,
    differences_table,
    latest,
    words_of_brought,
)
from tasks.report.task.diagnosis import Searches, diagnose, diagnosis_of
from tasks.report.task.page import Localized, Written, training_chart, write_report
from tasks.report.task.pages import page_bytes, page_here, page_place, remove_page
from tasks.report.task.record import record_of, rows_of
from tasks.report.task.results import write_results

__all__ = [
    "ALPHA",
    "MARGIN",
    "Chart",
    "Localized",
    "Searches",
    "Written",
    "accept",
    "audits_named",
    "baseline_of",
    "brought_back",
    "claims",
    "compare",
    "diagnose",
    "diagnosis_of",
    "differences_table",
    "drawn",
    "grid",
    "latest",
    "page_bytes",
    "page_here",
    "page_place",
    "put_between",
    "record_of",
    "remove_page",
    "rows_of",
    "standings",
    "training_chart",
    "words_of_brought",
    "write_report",
    "write_results",
]
