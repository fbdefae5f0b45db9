"""What would run and why, what it costs, and the rows of what is done."""
