"""Stores, versions, the read path and the HTTP API. Never imports Beam or TensorFlow.

What belongs where: stores/ keeps bytes; versions, catalogue, fallback and read make one ranked list of them; profile
reads what is known of a user or an item; responses is the shape of an answer; api, settings and logs are the HTTP server.
"""
