"""EVM chains: one reader, and protocol adapters without I/O."""
