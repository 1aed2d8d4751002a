"""Local devnet, configuration and operations around the service; not part of the installed package."""
