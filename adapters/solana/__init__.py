"""Solana: account layouts, sans-I/O adapters, and the client of our own programs."""
