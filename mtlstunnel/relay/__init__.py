"""Carrying the bytes: the life of one tunnel, the pump, its lanes and the way to the upstream."""
