"""Pointers in the background and bundles beside those in use: what counts when, and what a broken one changes."""

import asyncio
import contextlib
import time

import pytest
from ranking.bundle_world import make_bundle

from serving.bundles import Bundles
from serving.stores.aio import open_async
from serving.stores.base import Active, StoreError
from serving.versions import Choice, Versions


class Away:
    """A store of pointers that can be away, or answer late."""

    def __init__(self, store):
        self.inner, self.away, self.late = store, False, None

    async def active(self, surface, timeout=None):
        if self.away:
            raise StoreError("away")
        found = await self.inner.active(surface, timeout=timeout)
        if self.late is not None:
            await self.late.wait()
        return found


@contextlib.asynccontextmanager
async def opened(world, seconds=0.02, **more):
    store, told = Away(open_async(world.uri)), []
    bundles = Bundles(world.workspace.root / "bundles", lambda event, fields: told.append((event, fields["version"])))
    versions = Versions(store, bundles, ("homepage", "cart"), seconds=seconds, **more)
    await versions.start()
    try:
        yield versions, bundles, store, told
    finally:
        await versions.close()
        await bundles.close()
        await store.inner.close()


def bundle(world, version, **more):
    return make_bundle(world.workspace.root / "bundles" / version, version=version, **more)


async def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def run(drill):
    asyncio.run(drill)


def test_a_pointer_counts_once_its_bundles_are_loaded_and_requests_read_the_old_one_until_then(world, monkeypatch):
    bundle(world, "v1")
    bundle(world, "v2")
    world.flip("v1")

    async def drill():
        async with opened(world) as (versions, bundles, _, _told):
            go = asyncio.Event()
            load = bundles._load

            async def slow(version):
                await go.wait()
                await load(version)

            monkeypatch.setattr(bundles, "_load", slow)
            world.flip("v2", previous="v1")
            await until(lambda: versions.pending)
            assert versions.choose("homepage", "ann") == Choice("homepage", "v1", None)
            assert bundles.health("v2") == "loading" and bundles.get("v1") is not None
            go.set()
            await until(lambda: not versions.pending)
            assert versions.choose("homepage", "ann") == Choice("homepage", "v2", "v1")
            assert bundles.get("v1") is not None, "a rollback needs it"

    run(drill())


def test_a_broken_bundle_never_replaces_what_is_served_and_counts_once_it_is_mended(world, monkeypatch):
    monkeypatch.setattr("serving.bundles.RETRY_SECONDS", 0.05)
    bundle(world, "v1")
    bundle(world, "v2")
    manifest = world.workspace.root / "bundles" / "v2" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"index_version": "m1"', b'"index_version": "m0"'))
    world.flip("v1")

    async def drill():
        async with opened(world) as (versions, bundles, _, told):
            world.flip("v2", previous="v1")
            await until(lambda: bundles.health("v2") == "broken")
            assert versions.choose("homepage", "ann").version == "v1" and ("bundle broken", "v2") in told
            manifest.write_bytes(whole)
            await until(lambda: versions.choose("homepage", "ann").version == "v2")

    run(drill())


def test_an_index_that_cannot_be_read_leaves_the_rest_of_its_bundle(world):
    bundle(world, "v1")
    (world.workspace.root / "bundles" / "v1" / "index" / "manifest.json").write_text("{}")
    world.flip("v1")

    async def drill():
        async with opened(world) as (_, bundles, _store, told):
            assert bundles.get("v1") is not None and ("index broken", "v1") in told

    run(drill())


def test_old_bundles_are_let_go_of_and_requests_under_way_keep_theirs(world, monkeypatch):
    for version in ("v1", "v2", "v3", "v4"):
        bundle(world, version)
    world.flip("v1")

    async def drill():
        async with opened(world) as (versions, bundles, _, _told):
            mine = bundles.get("v1")
            world.flip("v2", previous="v1")
            await until(lambda: versions.choose("homepage", "ann").version == "v2")
            world.flip("v3", previous="v2")
            await until(lambda: versions.choose("homepage", "ann").version == "v3" and not versions.pending)
            assert bundles.versions == ["v1", "v2", "v3"], "the last one that no pointer names stays warm"
            world.flip("v4", previous="v3")
            await until(lambda: bundles.versions == ["v2", "v3", "v4"])
            assert mine.metadata(3).startswith(b"{")
            monkeypatch.setattr(bundles, "_load", None)  # what is warm is not loaded again
            world.flip("v2", previous="v4")
            await until(lambda: versions.choose("homepage", "ann").version == "v2")
            await until(lambda: bundles.versions == ["v2", "v3", "v4"])

    run(drill())


def test_a_store_that_is_away_changes_nothing_and_is_found_again(world):
    world.flip("v1")

    async def drill():
        async with opened(world) as (versions, _, store, _told):
            store.away = True
            await until(lambda: versions.trouble)
            assert versions.choose("homepage", "ann").version == "v1"
            world.flip("v2")
            store.away = False
            await until(lambda: versions.choose("homepage", "ann").version == "v2")
            assert versions.trouble == "" and versions.age_s < 1

    run(drill())


def test_an_answer_from_before_a_flip_does_not_undo_it(world):
    world.flip("v1")

    async def drill():
        async with opened(world, seconds=60) as (versions, _, store, _told):
            store.late = asyncio.Event()
            before = asyncio.create_task(versions.refresh())
            await asyncio.sleep(0.02)  # has read v1, is late
            world.flip("v2")
            after = asyncio.create_task(versions.refresh())
            await asyncio.sleep(0.02)
            store.late.set()
            await asyncio.gather(before, after)
            assert {**versions.served, **versions.pending}["homepage"] == Active("v2")

    run(drill())


def test_a_surface_without_a_pointer_reads_the_homepages_and_gets_its_own_when_it_is_published(world):
    world.flip("v1")

    async def drill():
        async with opened(world) as (versions, _, _store, _told):
            assert versions.choose("cart", "ann") == Choice("homepage", "v1", None)
            world.flip("c1", surface="cart")
            await until(lambda: versions.choose("cart", "ann") == Choice("cart", "c1", None))

    run(drill())


@pytest.mark.parametrize(("pinned", "version", "fallback"), [
    (None, "v3", "v2"), ("v2", "v2", "v1"), ("v1", "v1", None), ("v0", "v3", "v2")])
def test_a_request_reads_one_version_the_one_of_its_first_page_while_that_is_served(world, pinned, version, fallback):
    world.flip("v2", previous="v1", challenger="v3", percent=100)

    async def drill():
        async with opened(world) as (versions, _, _store, _told):
            assert versions.served == {"homepage": Active("v2", "v3", 100, "v1")}
            assert versions.choose("homepage", "ann", pinned) == Choice("homepage", version, fallback)

    run(drill())
