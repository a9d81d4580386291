"""pyOpenSSL's room: contexts, the verify callback, the handshake, the session as a byte machine."""
