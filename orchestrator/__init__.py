"""When to run what: plan, store, controller, sweep, tracking, command line."""
