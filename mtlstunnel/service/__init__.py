"""Running it: listeners, live connections, the self-made certificate, events as JSON lines."""
