"""The shell around the core: it reads, times, signs, stores and posts."""
