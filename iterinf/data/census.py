"""Old name of `iterinf.data.summary`; remove once the experiment imports that."""

from iterinf.data.summary import SplitSummary as SplitCensus
from iterinf.data.summary import count_records

__all__ = ["SplitCensus", "count_records"]
