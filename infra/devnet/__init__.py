"""The local devnet: two Anvil chains, one Solana chain and a price publisher."""
