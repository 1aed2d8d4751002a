"""Chain providers that turn bad on demand: a proxy in front of real nodes, many of them in one child process."""
