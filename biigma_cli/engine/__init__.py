"""Training and evaluation; never prints, calls back with events."""
