"""The report of a study: its page, figures, tables and claims."""
