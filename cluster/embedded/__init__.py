"""The embedded Ray: its private directory, its start, and what a killed command left of it."""
