"""Verify what crossmargin attests: statements, leaves, links, prices and audit bundles.

A distribution of its own (`crossmargin-proofs`): it imports nothing of the service, reads no clock, network or
environment, and shares no encoding or tree code with the producer. Functions named `verify_` raise a `ProofError`
or return what was proven; the others are pure encodings and computations.
"""
