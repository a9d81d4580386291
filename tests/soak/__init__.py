"""What the tunnel must survive: loads, faults and both at once, and what is left of them after."""
