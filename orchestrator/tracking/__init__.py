"""MLflow: what is sent, by whom, and how it is rebuilt."""
