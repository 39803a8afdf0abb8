"""The page at ``/``: static files, served as they are by serving.api.page; no build step, no request to another host."""
