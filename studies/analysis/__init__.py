"""A results table in, figures and a report out; no Ray, MLflow or torch."""
