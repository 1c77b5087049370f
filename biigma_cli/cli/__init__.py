"""The commands: one thin file each, one error boundary."""
