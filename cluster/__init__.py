"""How N ranks are placed, started, watched and stopped."""
