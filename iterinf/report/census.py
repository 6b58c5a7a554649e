"""Old name of `iterinf.report.summary`; remove once the experiment imports that."""

from iterinf.report.summary import format_summaries as format_census

__all__ = ["format_census"]
