"""The only code that knows a chain, a price publisher or a key file."""
