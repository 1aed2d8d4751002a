"""The commands, one module per group; ``aggregator.__main__`` gathers them."""
