"""The verbs of `mae-study` and what they show."""
