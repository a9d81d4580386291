"""Whole processes: a tunnel as people start it, and the programs they talk to it with."""
