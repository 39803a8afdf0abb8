"""Keys of the API: who may read, write events, write features or change versions.

  beamrec keys add --role read --name shop           prints the key, once: only its hash is kept
  beamrec keys add --role read --role write_events --rate 500
  beamrec keys list
  beamrec keys revoke ID                             refused by running servers within a second

A request sends the header "Authorization: Bearer KEY". Roles: read (lists, similar items, features), write_events (events,
items, users), write_features, admin (everything, flips and rollbacks too). --rate is requests a second, with a burst of two
seconds; without it there is no limit. Keys lie in WORKSPACE/keys.json (or --file), readable by its owner alone; 'beamrec serve'
takes that file when it is there. Once there is a file, requests without a key may do nothing unless --anonymous says so.
"""

from __future__ import annotations

import argparse
import secrets
import time
from pathlib import Path

import msgspec

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from serving.api_keys import ROLES, Key, KeyFile, KeyFileError, new_key
from serving.responses import rfc3339

MAX_NAME = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``keys``."""
    parser.add_argument("action", choices=("add", "list", "revoke"))
    parser.add_argument("id", nargs="?", help="of the key to revoke")
    parser.add_argument("--role", action="append", default=[], choices=ROLES, help="repeatable")
    parser.add_argument("--name", default="", help="who has it, for your list")
    parser.add_argument("--rate", type=float, default=0.0, metavar="N", help="requests a second (default: no limit)")
    parser.add_argument("--file", metavar="PATH", help="default: WORKSPACE/keys.json")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Adds, lists or revokes."""
    path = Path(args.file) if args.file else Config.from_args(args).workspace.keys
    try:
        held = KeyFile.read(path)
    except FileNotFoundError:
        held = KeyFile(mask=secrets.token_hex(32))
    except (OSError, KeyFileError) as error:
        raise UserError(str(error)) from error
    if args.action == "add":
        return _add(args, path, held)
    if args.action == "revoke":
        return _revoke(args, path, held)
    _show(args, held)
    return 0


def _add(args: argparse.Namespace, path: Path, held: KeyFile) -> int:
    if args.id:
        raise UserError(f"an id is made for you; did you mean --name {args.id}?")
    if not args.role:
        raise UserError(f"--role says what the key may do: {', '.join(ROLES)}")
    if args.rate < 0 or len(args.name) > MAX_NAME:
        raise UserError(f"--rate is 0 or more, --name has at most {MAX_NAME} characters")
    text, key = new_key(tuple(dict.fromkeys(args.role)), args.name, args.rate, time.time_ns() // 1000)
    KeyFile((*held.keys, key), held.mask).write(path)
    if args.json:
        print_json({"id": key.id, "key": text, "roles": key.roles, "file": str(path)})
    else:
        print(f"{text}\n\nThis is the only time it is shown. Id {key.id}, roles {', '.join(key.roles)}, kept in {path}.")
    return 0


def _revoke(args: argparse.Namespace, path: Path, held: KeyFile) -> int:
    if not any(key.id == args.id for key in held.keys):
        raise UserError(f"no key {args.id!r}; 'beamrec keys list' shows them")
    now = time.time_ns() // 1000
    keys = tuple(msgspec.structs.replace(key, revoked_at=now) if key.id == args.id and key.revoked_at is None else key
                 for key in held.keys)
    KeyFile(keys, held.mask).write(path)
    if args.json:
        print_json({"id": args.id, "revoked": True})
    else:
        print(f"{args.id} is revoked")
    return 0


def _show(args: argparse.Namespace, held: KeyFile) -> None:
    if args.json:
        print_json([_told(key) for key in held.keys])
        return
    if not held.keys:
        print("no keys; 'beamrec keys add --role read' makes one")
    for key in held.keys:
        said = _told(key)
        rate = f"{key.rate:g}/s" if key.rate else "no limit"
        print(f"{key.id}  {'revoked' if key.revoked_at else 'active':<8} {','.join(key.roles):<30} {rate:<10} "
              f"{said['created_at']}  {key.name}")


def _told(key: Key) -> dict[str, object]:
    return {"id": key.id, "name": key.name, "roles": key.roles, "rate": key.rate, "created_at": rfc3339(key.created_at),
            "revoked_at": rfc3339(key.revoked_at) if key.revoked_at else None}
