"""Where the time of a study went, and which checkpoint interval is best."""
