"""The faces: one module for each twistd plugin, and what twistd needs to find it."""
