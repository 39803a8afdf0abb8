"""The stream's middle: stateful transforms that keep one bucket of entities each, as columns.

wire.py packs columns for shuffles and state, seen.py de-duplicates, state.py is the engine (plain Python, no Beam) with
user.py and item.py saying what a bucket of each kind does, cells.py gives what changed the form of the store; bucket.py wires
the engine to Beam's state and timers, stages.py has the transforms.
"""
