"""The report of a run: tables for the terminal and for Markdown, figures as SVG, one self-contained page."""

from ilora.report.html import write_report
from ilora.report.tables import markdown_table, row_values, run_table

__all__ = ["markdown_table", "row_values", "run_table", "write_report"]
