"""The report of a run: one self-contained HTML page that says whether the distillation paid.

Stands after the last stage: reads the run's `Summary`, the history of the matching loss and the pictures,
and computes nothing of the method itself. Knows nothing of torch.
"""

from limbeck.report.data import ReportData
from limbeck.report.page import render_report

__all__ = ["ReportData", "render_report"]
