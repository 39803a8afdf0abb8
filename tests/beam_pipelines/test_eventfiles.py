"""Which rows of a day's events are kept: the same whether few long runs are sliced out or rows are taken one by one."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.io import eventfiles


@pytest.mark.parametrize("most_runs", [0, 64])
@given(keep=st.lists(st.booleans(), max_size=60))
def test_the_kept_rows_stay_in_order(keep, most_runs):
    rows = pa.table({"n": pa.array(range(len(keep)), pa.int64()), "s": pa.array([f"{n % 3}" for n in range(len(keep))])})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eventfiles, "_MAX_RUNS", most_runs)
        kept = eventfiles._only(rows, np.array(keep, bool))
    assert kept.schema == rows.schema
    assert kept["n"].to_pylist() == [n for n, wanted in enumerate(keep) if wanted]
