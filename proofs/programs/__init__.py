"""The Solana programs: C sources, the built files with their sha256, and the linker that laid them out."""
