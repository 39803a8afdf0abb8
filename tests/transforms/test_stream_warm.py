"""Warming up: what a worker has loaded when the first event comes."""

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import sys
sys.path[:0] = [{here!r}]
from numba.core.dispatcher import Dispatcher
from stream_oracle import HOUR, ORIGIN, Event
from test_stream_state import packed
from transforms.beam.stream.item import ItemBucket
from transforms.beam.stream.state import Rules
from transforms.beam.stream.user import ITEM_COLUMNS, UserBucket
from transforms.beam.stream.warm import warm_up
from transforms.beam.stream.wire import by_item, pack, split, unpack

def compiled():
    ours = [m for name, m in list(sys.modules.items()) if name.split(".")[0] in ("schemas", "transforms")]
    loops = [x for m in ours for x in vars(m).values() if isinstance(x, Dispatcher)]
    return {{(x.__module__, x.__name__, str(s)) for x in loops for s in x.nopython_signatures}}

warm_up()
known = compiled()
assert len(known) > 15, known
users, items = UserBucket.new(Rules(audit=True)), ItemBucket.new(Rules(audit=True))
kinds = ("view", "purchase", "impression")
events = [Event(f"e{{i}}", f"u{{i % 3}}", f"i{{i % 5}}", kinds[i % 3], ORIGIN + i * 60_000_000, i, i / 4, ("a", f"c{{i % 2}}"))
          for i in range(90)]
for _, part in split(unpack(packed(events)), "user_id", 1):
    taken = users.take(unpack(pack(part)))
for _, message in by_item([taken.fresh.select(ITEM_COLUMNS)], [taken.pairs], 1):
    items.take(message)
for bucket in (users, items):
    assert bucket.flush()
    bucket.snapshot()
    bucket.advance(ORIGIN + 30 * HOUR)
    bucket.snapshot()
print(sorted(compiled() - known))
"""


def test_nothing_is_left_to_load_or_compile():
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", _PROGRAM.format(here=here)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
