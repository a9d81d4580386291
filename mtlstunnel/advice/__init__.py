"""Why a client would be refused and what to do, in words; no connection waits for this room."""
