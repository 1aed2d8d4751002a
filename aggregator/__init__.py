"""The crossmargin service: reads chains, values accounts, collects attestations, serves what it computed."""
