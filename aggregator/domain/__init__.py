"""Nouns: frozen values without logic beyond their own invariants."""
