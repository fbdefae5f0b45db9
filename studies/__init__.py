"""What to run and what it means: studies, identities, analysis."""
