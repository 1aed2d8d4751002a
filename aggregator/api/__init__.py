"""The HTTP API and the first page: they read the Store and pass the few writes on."""

from aggregator.api.app import ApiService, create_app

__all__ = ["ApiService", "create_app"]
