"""What runs inside a rank's process: it imports nothing from above."""
