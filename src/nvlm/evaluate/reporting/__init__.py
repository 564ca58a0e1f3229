"""From answers to reports: scores, intervals, galleries, comparisons."""
