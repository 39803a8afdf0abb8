"""What a load needs: machines, nodes, bytes and money, each by a formula that is printed with its result.

Rates are what one core did where the README's figures were measured; sizes are bytes of what is written. Both, and prices,
are inputs. A plan is a first estimate to order machines by, not a promise: measure again on what was ordered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

HOURS = 730.0
"""Of a month."""
DAY_S = 86_400
GB = 1e9
MACHINE_CORES = 16
EVENTS_PER_VISIT = 10
"""Events of a user who is active within an hour."""
MONTHLY_OVER_DAILY = 8
"""Users active within 30 days, who get lists ahead, over those of one day; never more than all."""
_T = TypeVar("_T", "Load", "Rates", "Sizes", "Prices")


@dataclass(frozen=True)
class Load:
    """What is to be carried. Peak rates; a day's mean is the peak divided by ``peak_factor``.

    Attributes:
      users, items: known ones; daily_users: active on a day.
      events_per_second, requests_per_second: at the peak.
      events_per_request: how many events a client posts at once.
      dimensions: of item vectors; list_length: items of a list; surfaces: with lists of their own; versions: kept.
      peak_factor: peak over mean; utilisation: of a core or node at the peak, so that a failure leaves room.
      replication: copies of the log; log_days, lake_days: kept.
      nightly_hours: the batch's window; refresh_minutes: how often lists of users active within the last hour are made.
    """

    users: int
    items: int
    events_per_second: float
    daily_users: int
    requests_per_second: float
    events_per_request: float = 1.0
    dimensions: int = 64
    list_length: int = 100
    surfaces: int = 1
    versions: int = 3
    peak_factor: float = 3.0
    utilisation: float = 0.6
    replication: int = 3
    log_days: float = 3.0
    lake_days: float = 400.0
    nightly_hours: float = 2.0
    refresh_minutes: float = 15.0


@dataclass(frozen=True)
class Rates:
    """What one core, node or broker does in a second; the README names the command behind each of ours.

    Attributes:
      collect_requests, collect_events: requests of one event; events in batches of 100 (``bench collect``).
      stream_events: the whole streaming job (``bench stream``).
      batch_events, batch_users: a night's features: its events read, and every known user's partials merged
        (``bench incremental``: CPU seconds of all days by events, of one night by users).
      lists: lists made ahead (``bench recommend``).
      api_requests: GET /v1/recommendations with suppression, re-rank and diversity over SQLite: half of what two cores answered
        at most, which made the load too (max_requests_per_s of ``bench serve --store sqlite``).
      partition_events: of one partition of the log.
      broker_bytes: in and out of one broker's network and disk.
      bigtable_reads, bigtable_writes: rows of about 1 kB of one node, as Google plans with.
    """

    collect_requests: float = 10_000.0
    collect_events: float = 107_000.0
    stream_events: float = 59_000.0
    batch_events: float = 180_000.0
    batch_users: float = 30_000.0
    lists: float = 3_500.0
    api_requests: float = 2_400.0
    partition_events: float = 20_000.0
    broker_bytes: float = 100e6
    bigtable_reads: float = 10_000.0
    bigtable_writes: float = 10_000.0


@dataclass(frozen=True)
class Sizes:
    """Bytes, of the simulated world unless said otherwise.

    Attributes:
      event: as clients post it; log_event: packed in the log; lake_event: as it came and clean, in Parquet.
      user_batch, item_batch: cells of the batch features and the catalogue, with their keys.
      user_stream: stream cells of a user active within a day; item_stream: of an item.
      list_item: one entry of a list.
      event_state: of the streaming job for each event of the last hour (ids that tell copies); user_state: for a user of a day.
      bundle_item: of a bundle beside the vector: ids, neighbours, metadata.
      node_bytes: an SSD node of Bigtable, at 70 % full; broker_disk: of one broker.
      machine_bytes: memory of an API machine that a bundle may take.
    """

    event: float = 500.0
    log_event: float = 200.0
    lake_event: float = 135.0
    user_batch: float = 1_600.0
    item_batch: float = 1_400.0
    user_stream: float = 1_800.0
    item_stream: float = 1_500.0
    list_item: float = 25.0
    event_state: float = 24.0
    user_state: float = 900.0
    bundle_item: float = 600.0
    node_bytes: float = 3.5e12
    broker_disk: float = 4e12
    machine_bytes: float = 24e9


@dataclass(frozen=True)
class Prices:
    """US dollars: rounded list prices of one region of one cloud; yours differ.

    Attributes:
      core_hour: a virtual core with 4 GB; bigtable_node_hour; ssd_gb, disk_gb, object_gb: a month; dataflow_core_hour: a
        streaming core with its memory and engine.
    """

    core_hour: float = 0.05
    bigtable_node_hour: float = 0.65
    ssd_gb: float = 0.17
    disk_gb: float = 0.10
    object_gb: float = 0.02
    dataflow_core_hour: float = 0.13


@dataclass(frozen=True)
class Need:
    """One line of a plan: so many units, why, and what they cost in a month."""

    part: str
    amount: float
    unit: str
    formula: str
    usd_per_month: float


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
      needs: line by line; settings: what to set for it, by flag or setting.
      cores: at the peak, without log and store; usd_per_month: of all lines.
      one_machine: whether one machine of 16 cores and 64 GB carries it, with the embedded store and a local log; why says
        what speaks against it. machine_usd_per_month: what that machine and its disk cost instead.
    """

    load: Load
    needs: list[Need] = field(default_factory=list)
    settings: dict[str, int | str] = field(default_factory=dict)
    cores: int = 0
    usd_per_month: float = 0.0
    one_machine: bool = False
    why: str = ""
    machine_usd_per_month: float = 0.0


def overridden(values: _T, said: list[str]) -> _T:
    """``values`` with some replaced; each of ``said`` is NAME=NUMBER. Raises ValueError."""
    known = {f.name for f in fields(values)}
    found: dict[str, Any] = {}
    for each in said:
        name, _, number = each.partition("=")
        if name not in known:
            raise ValueError(f"there is no {name!r}; one of: {', '.join(sorted(known))}")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise ValueError(f"{each!r} is not NAME=NUMBER") from error
        if not 0 < found[name] < math.inf:
            raise ValueError(f"{name} is a number above 0, not {number}")
    return replace(values, **found)


def distinct(draws: float, kinds: float) -> float:
    """Expected different ones among ``draws`` of ``kinds`` equally likely: n (1 - e^(-k/n)); fewer where some are favoured."""
    return kinds * -math.expm1(-draws / kinds)


def plan(load: Load, rates: Rates | None = None, sizes: Sizes | None = None, prices: Prices | None = None) -> Plan:
    """The plan of a load."""
    rates, sizes, prices = rates or Rates(), sizes or Sizes(), prices or Prices()
    core = prices.core_hour * HOURS
    daily_events = load.events_per_second / load.peak_factor * DAY_S
    needs: list[Need] = []

    def cores(part: str, per_second: float, rate: float, formula: str, hours: float = HOURS, per_hour: float = 0.0) -> int:
        amount = max(1, math.ceil(per_second / rate / load.utilisation))
        needs.append(Need(part, amount, "cores", f"{formula} / {load.utilisation:g}",
                          amount * (per_hour or prices.core_hour) * hours))
        return amount

    by_request = load.events_per_second / load.events_per_request
    collect = max(by_request / rates.collect_requests, load.events_per_second / rates.collect_events)
    total = cores("collector", collect, 1.0, "max(requests/s / collect_requests, events/s / collect_events)")

    in_bytes = load.events_per_second * sizes.log_event * load.replication
    kept = daily_events * sizes.log_event * load.replication * load.log_days
    brokers = max(load.replication, math.ceil(in_bytes * 2 / rates.broker_bytes / load.utilisation),
                  math.ceil(kept / sizes.broker_disk / 0.7))
    partitions = max(brokers, math.ceil(load.events_per_second / rates.partition_events))
    needs.append(Need("event log", brokers, "brokers of 8 cores", "max(replication, events/s x log_event x replication x 2 / "
                      "broker_bytes / utilisation, bytes kept / broker_disk / 0.7)", brokers * 8 * core))
    needs.append(Need("event log, disk", kept / GB, "GB", "events/day x log_event x replication x log_days",
                      kept / GB * prices.disk_gb))

    stream = cores("stream", load.events_per_second, rates.stream_events, "events/s / stream_events",
                   per_hour=prices.dataflow_core_hour)
    total += stream
    state = load.events_per_second * 3600 * sizes.event_state + load.daily_users * sizes.user_state
    needs.append(Need("stream, state", state / GB, "GB", "events/s x 3600 x event_state + daily_users x user_state",
                      state / GB * prices.ssd_gb))

    lake = daily_events * sizes.lake_event * load.lake_days
    needs.append(Need("lake", lake / GB, "GB", "events/day x lake_event x lake_days", lake / GB * prices.object_gb))

    night = load.nightly_hours * 3600
    total_batch = cores("batch, nightly", (daily_events / rates.batch_events + load.users / rates.batch_users) / night, 1.0,
                        "(events/day / batch_events + users / batch_users) / nightly window", load.nightly_hours * 30.4)
    monthly = min(load.users, MONTHLY_OVER_DAILY * load.daily_users)
    ahead = f"min(users, {MONTHLY_OVER_DAILY} x daily_users) x surfaces"
    total_batch += cores("lists, nightly", monthly * load.surfaces / night, rates.lists, f"{ahead} / nightly window / lists",
                         load.nightly_hours * 30.4)
    hourly = distinct(load.events_per_second / load.peak_factor * 3600 / EVENTS_PER_VISIT, load.daily_users)
    total += cores("lists, every few minutes", hourly * load.surfaces / (load.refresh_minutes * 60), rates.lists,
                   f"distinct(events/h / {EVENTS_PER_VISIT}, daily_users) x surfaces / refresh / lists")

    api = cores("API", load.requests_per_second, rates.api_requests, "requests/s / api_requests (bench serve)")
    total += api
    bundle = load.items * (load.dimensions * 4 + sizes.bundle_item)
    shards = max(1, math.ceil(bundle * 2 / sizes.machine_bytes))  # two at a time: the new one loads beside the old
    needs.append(Need("item index, memory", bundle * 2 / GB, "GB a machine, two versions",
                      "2 x items x (dimensions x 4 + bundle_item)", 0.0))

    stored = (load.users * sizes.user_batch + load.items * (sizes.item_batch + sizes.item_stream)
              + load.daily_users * sizes.user_stream
              + monthly * load.surfaces * load.versions * load.list_length * sizes.list_item)
    reads = load.requests_per_second * 2  # a row of features and one of lists
    writes = distinct(load.events_per_second, load.daily_users) + distinct(load.events_per_second, load.items)
    nodes = max(1, math.ceil(stored / sizes.node_bytes),
                math.ceil((reads / rates.bigtable_reads + writes / rates.bigtable_writes) / load.utilisation))
    needs.append(Need("store", nodes, "Bigtable nodes", "max(bytes / node_bytes, (2 x requests/s / bigtable_reads + rows "
                      "written/s / bigtable_writes) / utilisation)", nodes * prices.bigtable_node_hour * HOURS))
    needs.append(Need("store, SSD", stored / GB, "GB", "users x user_batch + items x (item_batch + item_stream) + daily_users "
                      "x user_stream + lists x versions x list_length x list_item", stored / GB * prices.ssd_gb))

    settings: dict[str, int | str] = {
        "log partitions": partitions, "replication.factor": load.replication,
        "min.insync.replicas": max(1, load.replication - 1),
        "--readers": min(partitions, _power(stream)), "--user-buckets": _power(2 * stream), "--item-buckets": _power(stream),
        "--buckets (batch)": max(8, _power(total_batch)), "serve --workers (all machines)": api, "index shards": shards}
    one, why = _one_machine(total, bundle * 2 + state, stored)
    disk = (stored + kept / load.replication + lake) / GB * prices.disk_gb
    return Plan(load, needs, settings, total, sum(n.usd_per_month for n in needs), one, why, MACHINE_CORES * core + disk)


def _power(count: int) -> int:
    """The power of two at or above a count, at least 4."""
    return max(4, 1 << (count - 1).bit_length())


def _one_machine(cores: int, memory: float, stored: float) -> tuple[bool, str]:
    if cores > MACHINE_CORES:
        return False, f"{cores} cores at the peak: more than {MACHINE_CORES}"
    if memory > 40e9:
        return False, f"{memory / GB:.0f} GB of memory for index and state: more than 40"
    if stored > 500e9:
        return False, f"{stored / GB:.0f} GB in the store: more than a SQLite file should hold"
    return True, "the embedded store and the local log carry it"
