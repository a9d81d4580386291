"""
Damage at random, by a seed: certificates, chains, handshake records and PEM files.

``make fuzz`` runs the whole of it, ``make test`` a sample.
"""
