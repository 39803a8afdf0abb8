"""The collector: events and upserts in over HTTP, into the event log, answered once they are durable.

What belongs where: wire is the JSON that clients send; router decides what becomes of each event; packer gathers the events
of a partition into one record; columns makes Arrow of single events. Plain bodies take the quick way instead: bodies reads
those of a round together, by the compiled loops of scan (JSON to places; json_places reads single values), packs (places to
the log's records) and answers.
stamps and suppress are what is asked of and told to the store (rounds runs that in threads); dead keeps what is refused;
upserts are items and users; metrics counts; app is HTTP, connection its short way for events (known_head what a client's
requests have in common); settings what a process is told. Needs neither Beam nor TensorFlow.
"""

LINGER_MS = 2.0
"""How far apart rounds begin at least, unless a process is told otherwise."""
