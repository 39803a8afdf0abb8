"""Clients of the collector: client.js for browsers, events for Python."""
